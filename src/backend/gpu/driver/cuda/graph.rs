//! Work that is recorded once and started as a whole: stream capture and what becomes of it.

use super::api::Code;
use super::api::{Api, CAPTURE_THREAD_LOCAL};
use super::handles::{Graph, GraphExec, Stream};

/// A call that did not go through.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refused {
    pub call: &'static str,
    pub code: Code,
}

fn checked(call: &'static str, code: Code) -> Result<(), Refused> {
    if code.is_success() { Ok(()) } else { Err(Refused { call, code }) }
}

/// Starts to record what this thread adds to the stream.
pub(super) fn begin(api: &'static Api, stream: &Stream) -> Result<(), Refused> {
    // SAFETY: the stream is alive and not the legacy stream, which cannot be captured.
    checked("cuStreamBeginCapture", unsafe {
        (api.capture_begin)(stream.get(), CAPTURE_THREAD_LOCAL)
    })
}

/// Ends a recording, which must be done whatever came of the work.
pub(super) fn end(api: &'static Api, stream: &Stream) -> Result<Graph, Refused> {
    let mut handle = std::ptr::null_mut();
    // SAFETY: this thread began the capture; writes one handle, which lives on this stack.
    let code = unsafe { (api.capture_end)(stream.get(), &mut handle) };
    let graph = (!handle.is_null()).then(|| Graph::own(api, handle));
    checked("cuStreamEndCapture", code)?;
    // A capture that ends well has a graph.
    graph.ok_or(Refused { call: "cuStreamEndCapture", code: Code::INVALID_VALUE })
}

/// Makes recorded work ready to start, with all the memory that it takes of the device.
pub(super) fn instantiate(
    api: &'static Api,
    graph: Graph,
    stream: &Stream,
) -> Result<GraphExec, Refused> {
    let mut handle = std::ptr::null_mut();
    // SAFETY: the graph is alive; what is made of it does not need it any more.
    let code = unsafe { (api.graph_instantiate)(&mut handle, graph.get(), 0) };
    checked("cuGraphInstantiate", code)?;
    let exec = GraphExec::own(api, handle);
    // The first start would allocate otherwise, when the work can no longer be done in another way.
    // SAFETY: both are alive, and the stream is not being captured any more.
    checked("cuGraphUpload", unsafe { (api.graph_upload)(exec.get(), stream.get()) })?;
    Ok(exec)
}
