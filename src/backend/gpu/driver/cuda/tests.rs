//! The device over a table of entry points that fail when they are told to, count what they hand out, and do no work.

mod table;

use self::table::{Fake, fail, fake, live, with};
use super::*;
use crate::backend::gpu::driver::Args;
use crate::backend::gpu::{Gpu, Precision};
use crate::ops::{Transfer, WorkKey};

/// Codes of newer drivers than any binding here knows, memory that is full, and a number that nobody uses.
const CODES: [u32; 5] = [226, 721, 913, 2, 4711];

fn open() -> Result<Arc<Cuda>> {
    Cuda::open_with(fake(), 0, table::IMAGES, None)
}

fn kernel(name: &'static str) -> Launch {
    Launch {
        kernel: name,
        grid: [1, 1, 1],
        block: 32,
        shared: 0,
        args: Args::new().u32(7).ptr(256),
    }
}

/// Checks an error of `code`: its kind, its number and, where something can be done, a hint.
fn assert_error(what: &str, error: &Error, code: u32) {
    let kind = if code == 2 { Kind::Memory } else { Kind::Device };
    assert_eq!(error.kind(), kind, "{what}: {error}");
    // An allocation says how much it wanted.
    let wanted = if code == 2 { error.message().contains("wanted") } else { false };
    assert!(wanted || error.message().contains(&code.to_string()), "{what}: {error}");
    if matches!(code, 2 | 226 | 721) {
        assert!(error.hint_text().is_some(), "{what}: {error}");
    }
}

#[test]
fn open_that_fails_anywhere_says_where_and_leaves_nothing() {
    with(Fake::default());
    drop(open().unwrap());
    assert_eq!(live(), Vec::<String>::new(), "after a device that worked");
    let calls = table::calls();
    for (call, count) in
        calls.iter().filter(|(call, _)| !table::GIVES_BACK.contains(&call.as_str()))
    {
        // The first calls, and the last one.
        let places = (1..=(*count).min(2)).chain([*count]);
        for (at, code) in places.flat_map(|at| CODES.map(|code| (at, code))) {
            with(Fake::default());
            fail(call, at, code);
            let what = format!("{call} number {at} with {code}");
            match open() {
                Err(error) => assert_error(&what, &error, code),
                // What is said of the end of a device comes too late to matter.
                Ok(cuda) => drop(cuda),
            }
            assert_eq!(live(), Vec::<String>::new(), "{what}");
        }
    }
}

#[test]
fn every_call_returns_any_code_as_an_error() {
    type Work = fn(&Cuda) -> Result<()>;
    let works: [(&str, Work); 15] = [
        ("cuMemAlloc", |cuda| cuda.alloc(1 << 20).map(|at| cuda.free(at))),
        ("cuMemcpyHtoDAsync", |cuda| cuda.upload(256, &[1; 100])),
        ("cuMemcpyHtoDAsync", |cuda| cuda.stage(0, &[(256, &[1; 100][..])])),
        ("cuStreamWaitEvent", |cuda| cuda.stage(1, &[(256, &[1; 100][..])])),
        ("cuMemcpyDtoHAsync", |cuda| cuda.download(256, &mut [0; 100])),
        ("cuMemsetD8Async", |cuda| cuda.fill(256, 0, 100)),
        ("cuMemcpyDtoDAsync", |cuda| cuda.copy(256, 512, 100)),
        ("cuModuleGetFunction", |cuda| cuda.launch(kernel("plain"))),
        ("cuFuncSetAttribute", |cuda| cuda.launch(Launch { shared: 64 << 10, ..kernel("plain") })),
        ("cuLaunchKernelEx", |cuda| cuda.launch(kernel("plain"))),
        ("cuModuleLoadData", |cuda| cuda.load_ptx("text")),
        ("cuStreamSynchronize", |cuda| cuda.sync()),
        ("cuEventRecord", |cuda| cuda.mark(0)),
        ("cuEventSynchronize", |cuda| cuda.between_marks(0, 1).map(drop)),
        ("cuEventCreate", |cuda| cuda.laps(2, &mut |_| Ok(())).map(drop)),
    ];
    for (call, work) in works {
        for code in CODES {
            with(Fake::default());
            let cuda = open().unwrap();
            work(&cuda).unwrap_or_else(|error| unreachable!("{call}: {error}"));
            drop(cuda);
            let cuda = open().unwrap();
            fail(call, table::count(call) + 1, code);
            let error = work(&cuda).unwrap_err();
            assert_error(call, &error, code);
            drop(cuda);
            assert_eq!(live(), Vec::<String>::new(), "{call} with {code}");
        }
    }
}

#[test]
fn a_code_is_told_by_its_number_and_by_the_drivers_text_where_it_has_one() {
    with(Fake::default());
    let cuda = open().unwrap();
    fail("cuStreamSynchronize", table::count("cuStreamSynchronize") + 1, 913);
    let error = cuda.sync().unwrap_err();
    assert_eq!(
        error.message(),
        "cuda: cuStreamSynchronize: CUDA_ERROR_FUNCTION_NOT_LOADED (913): text of 913"
    );
    fail("cuStreamSynchronize", table::count("cuStreamSynchronize") + 1, 930);
    let error = cuda.sync().unwrap_err();
    assert_eq!(error.message(), "cuda: cuStreamSynchronize: CUDA_ERROR_930 (930): text of 930");
    // The driver does not know this one.
    fail("cuStreamSynchronize", table::count("cuStreamSynchronize") + 1, 4711);
    let error = cuda.sync().unwrap_err();
    assert_eq!(error.message(), "cuda: cuStreamSynchronize: error 4711");
}

#[test]
fn an_allocation_that_fails_says_what_it_wanted_and_what_is_free() {
    with(Fake { free: 3 << 30, ..Fake::default() });
    let cuda = open().unwrap();
    fail("cuMemAlloc", table::count("cuMemAlloc") + 1, 2);
    let error = cuda.alloc(4 << 30).unwrap_err();
    assert_eq!(
        error.message(),
        "cuda: Fake (device 0): wanted 4294967296 bytes, free are 3221225472"
    );
}

#[test]
fn only_the_documented_end_ends_a_list_of_parameters() {
    with(Fake::default());
    let cuda = open().unwrap();
    let error = cuda.launch(Launch { args: Args::new().u32(7), ..kernel("plain") }).unwrap_err();
    assert!(error.message().contains("argument sizes [4], wanted [4, 8]"), "{error}");
    cuda.launch(kernel("plain")).unwrap();
    drop(cuda);
    with(Fake::default());
    let cuda = open().unwrap();
    fail("cuFuncGetParamInfo", 2, 719);
    let error = cuda.launch(kernel("plain")).unwrap_err();
    assert!(error.message().contains("cuFuncGetParamInfo: plain: CUDA_ERROR_LAUNCH_FAILED (719)"));
}

#[test]
fn a_block_that_asks_for_more_shared_memory_than_there_is_is_refused() {
    with(Fake::default());
    let cuda = open().unwrap();
    let error = cuda.launch(Launch { shared: 228 << 10, ..kernel("plain") }).unwrap_err();
    assert!(error.message().contains("a block has at most 232448 bytes"), "{error}");
}

/// Captures a launch and returns what came of it and how many attributes launches had.
fn captured(cuda: &Cuda) -> (Option<u64>, Vec<u32>) {
    cuda.launch(kernel("waits")).unwrap();
    table::forget_attributes();
    cuda.launch(kernel("waits")).unwrap();
    let graph = cuda.capture(&mut || cuda.launch(kernel("waits"))).unwrap();
    (graph, table::attributes())
}

#[test]
fn kernels_start_early_in_captures_only_of_drivers_that_record_it() {
    for (version, capability, wanted) in [
        ((12, 2), (9, 0), [1, 0]),
        ((12, 3), (9, 0), [1, 1]),
        ((13, 0), (9, 0), [1, 1]),
        ((13, 0), (8, 0), [0, 0]),
    ] {
        with(Fake { version, capability, ..Fake::default() });
        let (graph, attributes) = captured(&open().unwrap());
        assert_eq!((graph, attributes.as_slice()), (Some(0), &wanted[..]), "{version:?}");
    }
}

#[test]
fn work_that_cannot_be_recorded_is_left_to_the_caller_and_said_once() {
    for call in [
        "cuStreamBeginCapture",
        "cuLaunchKernelEx",
        "cuStreamEndCapture",
        "cuGraphInstantiate",
        "cuGraphUpload",
    ] {
        for code in CODES {
            with(Fake::default());
            let cuda = open().unwrap();
            let before = live();
            for _ in 0..2 {
                fail(call, table::count(call) + 1, code);
                let graph = cuda.capture(&mut || cuda.launch(kernel("plain"))).unwrap();
                assert_eq!(graph, None, "{call} with {code}");
            }
            assert_eq!(live(), before, "{call} with {code}: a graph is left");
            let notes = lock(&cuda.notes).clone();
            assert_eq!(notes.len(), 1, "{notes:?}");
            assert!(notes[0].contains("kernels are started one by one"), "{notes:?}");
            assert!(notes[0].contains(&format!("{code}")), "{notes:?}");
            // The stream works on.
            cuda.launch(kernel("plain")).unwrap();
            cuda.sync().unwrap();
        }
    }
}

#[test]
fn nothing_is_recorded_where_little_memory_is_left() {
    with(Fake { free: GRAPH_ROOM - 1, ..Fake::default() });
    let cuda = open().unwrap();
    let mut worked = false;
    let graph = cuda.capture(&mut || {
        worked = true;
        Ok(())
    });
    assert_eq!((graph.unwrap(), worked), (None, false));
    assert!(lock(&cuda.notes)[0].contains("134217727 bytes of the device are free"));
}

#[test]
fn what_must_not_be_recorded_is_an_error() {
    with(Fake::default());
    let cuda = open().unwrap();
    let error = cuda.capture(&mut || cuda.alloc(1).map(drop)).unwrap_err();
    assert_eq!(error.message(), "cuda: an allocation inside captured work");
    let error = cuda.capture(&mut || cuda.upload(256, &[1])).unwrap_err();
    assert_eq!(error.message(), "cuda: an upload inside captured work");
}

#[test]
fn a_gpu_does_work_that_was_not_recorded_once_each_time() {
    with(Fake::default());
    let gpu = Gpu::new(open().unwrap(), Precision::Bf16, 0).unwrap();
    let launches = || table::count("cuLaunchKernelEx");
    let step = |gpu: &Gpu| {
        gpu.replay_as(WorkKey::new("key"), &mut || {
            gpu.launch("plain", [1, 1, 1], 32, 0, kernel("plain").args)
        });
        gpu.sync().unwrap();
    };
    step(&gpu);
    fail("cuGraphInstantiate", 1, 2);
    for done in 2..5 {
        let before = launches();
        step(&gpu);
        // The second time the launch is recorded in vain and then done.
        assert_eq!(launches() - before, if done == 2 { 2 } else { 1 });
    }
    assert_eq!(gpu.replays(), (0, 0));
    assert_eq!(table::count("cuGraphLaunch"), 0);
}

#[test]
fn the_first_failure_wins_over_those_that_it_causes() {
    type Work = fn(&Gpu) -> Result<()>;
    let works: [(&str, Work); 6] = [
        ("cuMemcpyHtoDAsync", |gpu| gpu.upload(256, &[1])),
        ("cuMemcpyDtoHAsync", |gpu| gpu.download(256, &mut [0])),
        ("cuMemsetD8Async", |gpu| gpu.fill(256, 0, 1)),
        ("cuMemcpyDtoDAsync", |gpu| gpu.copy(256, 512, 1)),
        ("cuMemAlloc", |gpu| gpu.alloc(64 << 20).map(drop)),
        ("cuStreamSynchronize", |gpu| gpu.sync()),
    ];
    for (call, work) in works {
        with(Fake::default());
        let gpu = Gpu::new(open().unwrap(), Precision::Bf16, 0).unwrap();
        fail("cuLaunchKernelEx", 1, 701);
        gpu.launch("plain", [1, 1, 1], 32, 0, kernel("plain").args);
        fail(call, table::count(call) + 1, 719);
        let error = work(&gpu).unwrap_err();
        assert!(error.message().contains("cuLaunchKernelEx: plain"), "{call}: {error}");
        assert!(error.message().contains("(701)"), "{call}: {error}");
    }
}

#[test]
fn a_grid_over_the_limit_is_refused_before_the_driver_sees_it() {
    with(Fake::default());
    let gpu = Gpu::new(open().unwrap(), Precision::Bf16, 0).unwrap();
    gpu.launch("plain", [1, 65_535, 1], 32, 0, kernel("plain").args);
    gpu.sync().unwrap();
    gpu.launch("plain", [1, 65_536, 1], 32, 0, kernel("plain").args);
    let error = gpu.sync().unwrap_err();
    assert!(error.message().contains("grid 1x65536x1"), "{error}");
    assert_eq!(table::count("cuLaunchKernelEx"), 1);
}

#[test]
fn a_device_that_compiles_kernels_does_so_when_they_are_needed_and_says_so() {
    with(Fake { capability: (12, 0), ..Fake::default() });
    let cuda = open().unwrap();
    assert_eq!(table::count("cuModuleLoadData"), 1);
    let notes = lock(&cuda.notes).clone();
    assert_eq!(notes.len(), 1);
    assert!(notes[0].contains("compiles up to 2 files"), "{notes:?}");
    cuda.launch(kernel("plain")).unwrap();
    assert_eq!(table::count("cuModuleLoadData"), 1);
    for _ in 0..2 {
        cuda.launch(kernel("other")).unwrap();
        assert_eq!(table::count("cuModuleLoadData"), 2);
    }
    // Kernels of compute capability 9.0 are of no use to it.
    let error = cuda.launch(kernel("sm90")).unwrap_err();
    assert!(error.message().contains("no kernel of this name for this device"), "{error}");
    for (capability, images) in [((8, 0), 2), ((8, 9), 2), ((9, 0), 3)] {
        with(Fake { capability, ..Fake::default() });
        let cuda = open().unwrap();
        assert_eq!((table::count("cuModuleLoadData"), lock(&cuda.notes).len()), (images, 0));
    }
}

#[test]
fn compute_capability_nine_needs_bulk_copies_at_the_start() {
    with(Fake::default());
    let api = Box::leak(Box::new(Api { tensor_map: None, ..*fake() }));
    let error = Cuda::open_with(api, 0, table::IMAGES, None).unwrap_err();
    assert!(error.message().contains("cuTensorMapEncodeTiled"), "{error}");
    with(Fake { capability: (8, 0), ..Fake::default() });
    let api = Box::leak(Box::new(Api { tensor_map: None, ..*fake() }));
    Cuda::open_with(api, 0, table::IMAGES, None).unwrap();
}

#[test]
fn devices_that_cannot_be_used_are_named() {
    for (device, ordinal, wanted) in [
        (Fake { capability: (7, 5), ..Fake::default() }, 0, "compute capability 7.5, wanted 8.0"),
        (Fake::default(), 1, "no device 1, the driver shows 1"),
    ] {
        with(device);
        let error = Cuda::open_with(fake(), ordinal, table::IMAGES, None).unwrap_err();
        assert!(error.message().contains(wanted) && error.hint_text().is_some(), "{error}");
    }
    with(Fake::default());
    let error = Cuda::open_with(fake(), 0, &[], None).unwrap_err();
    assert!(error.message().contains("no kernels"), "{error}");
    for (code, part) in [(802, "fabric"), (803, "reboot"), (34, "stub"), (999, "nvidia-uvm")] {
        with(Fake::default());
        fail("cuInit", 1, code);
        let error = open().unwrap_err();
        assert!(error.hint_text().unwrap().contains(part), "{error}");
    }
    with(Fake::default());
    fail("cuDevicePrimaryCtxRetain", 1, 46);
    let error = open().unwrap_err();
    assert!(error.hint_text().unwrap().contains("exclusive mode"), "{error}");
}

#[test]
fn open_on_a_machine_without_a_device_is_a_device_error() {
    match Cuda::open(0) {
        Ok(cuda) => assert!(cuda.identity().capability >= (8, 0)),
        Err(error) => {
            assert_eq!(error.kind(), Kind::Device, "{error}");
            assert!(error.hint_text().is_some(), "{error}");
            eprintln!("skipped: no CUDA device: {}", error.message());
        }
    }
}
