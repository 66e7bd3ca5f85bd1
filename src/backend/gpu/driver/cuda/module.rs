//! Kernels on a device: modules, loaded when they are first needed or at the start, and the functions in them.

use std::collections::HashMap;
use std::ffi::CString;

use super::api::Code;
use super::api::{Api, Handle, MAX_DYNAMIC_SHARED};
use super::handles::Module;
use crate::backend::gpu::driver::{Identity, Launch};
use crate::backend::gpu::images::{self, Image};
use crate::error::{Error, Kind, Result};

/// Dynamic shared memory that a kernel gets without asking, in bytes.
const SHARED_DEFAULT: u32 = 48 << 10;

/// A kernel, loaded.
#[derive(Debug)]
struct Function {
    handle: Handle,
    /// Dynamic shared memory it may be launched with.
    shared: u32,
    /// The sizes of its parameters, where the driver tells.
    sizes: Option<Vec<u8>>,
    /// True if it may start before the previous kernel has ended.
    early: bool,
}

// SAFETY: driver handles may be used by any thread in which their context is current.
unsafe impl Send for Function {}

/// A kernel that may be launched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ready {
    pub handle: Handle,
    /// True if it may start before the previous kernel has ended.
    pub early: bool,
}

/// All kernels of a device.
#[derive(Debug)]
pub(super) struct Kernels {
    api: &'static Api,
    images: &'static [Image],
    /// True if the images have machine code for this device, so that nothing is compiled when they are loaded.
    native: bool,
    /// True on compute capability 9.0, where kernels may start early and those of kernels/sm90/ run.
    sm90: bool,
    functions: HashMap<&'static str, Function>,
    /// Of each image, its module where it is loaded.
    modules: Vec<Option<Module>>,
    /// Modules that the caller brought.
    own: Vec<Module>,
}

/// Tells whether images have machine code for a device: sm_80 runs on all of 8.x, sm_90a on 9.0.
pub(super) fn is_native(capability: (u32, u32)) -> bool {
    capability.0 == 8 || capability == (9, 0)
}

impl Kernels {
    /// Lists the images; those with machine code for the device are loaded now, others one by one when a kernel of
    /// theirs is first needed, because each is compiled then. One of them is loaded now in any case: what the driver
    /// has against this build's code is said at the start.
    pub(super) fn new(
        api: &'static Api,
        identity: &Identity,
        images: &'static [Image],
    ) -> Result<Self> {
        let sm90 = identity.capability == (9, 0);
        let native = is_native(identity.capability);
        let modules = images.iter().map(|_| None).collect();
        let mut kernels =
            Self { api, images, native, sm90, functions: HashMap::new(), modules, own: Vec::new() };
        let wanted = (0..images.len()).filter(|at| sm90 || !images[*at].sm90);
        let now = if native { images.len() } else { 1 };
        for at in wanted.take(now) {
            kernels.module(at)?;
        }
        Ok(kernels)
    }

    /// Returns how many images this device compiles when they are first needed; 0 where they have code for it.
    pub(super) fn compiled(&self) -> usize {
        let portable = self.images.iter().filter(|image| !image.sm90).count();
        if self.native { 0 } else { portable }
    }

    /// Returns the module of an image, and loads it where it is not there yet.
    fn module(&mut self, at: usize) -> Result<Handle> {
        if let Some(module) = &self.modules[at] {
            return Ok(module.get());
        }
        let image = &self.images[at];
        let mut handle = std::ptr::null_mut();
        // SAFETY: a context is current and the image is a fatbin of nvcc, aligned to 16 bytes.
        let code = unsafe { (self.api.module_load)(&mut handle, image.fatbin.as_ptr().cast()) };
        if !code.is_success() {
            return Err(self.refused(image, code));
        }
        self.modules[at] = Some(Module::own(self.api, handle));
        Ok(handle)
    }

    /// Says which kernels a driver refused, and what usually helps.
    fn refused(&self, image: &Image, code: Code) -> Error {
        let nvcc = images::NVCC_VERSION.unwrap_or("unknown");
        self.api.failed(format!("cuModuleLoadData: kernels {} (nvcc {nvcc})", image.file), code)
    }

    /// Loads the kernels of a PTX text.
    pub(super) fn load_ptx(&mut self, ptx: &str, device: &str) -> Result<()> {
        let what = format!("cuModuleLoadData: PTX, {device}");
        let text = CString::new(ptx)
            .map_err(|e| Error::new(Kind::Device, format!("cuda: {what}: {e}")))?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: a context is current, and the driver reads the text up to its end within the call.
        let code = unsafe { (self.api.module_load)(&mut handle, text.as_ptr().cast()) };
        if !code.is_success() {
            let error = self.api.failed(what, code);
            return Err(match error.kind() {
                Kind::Memory => error,
                _ => error.hint("ptxas -arch=native says what is wrong with the text"),
            });
        }
        self.own.push(Module::own(self.api, handle));
        Ok(())
    }

    /// Looks a kernel up in a module; none where it has no kernel of this name.
    fn find(&self, module: Handle, name: &CString) -> Result<Option<Handle>, Code> {
        const NOT_FOUND: Code = Code(500);
        let mut handle = std::ptr::null_mut();
        // SAFETY: the module is loaded; writes one handle, which lives on this stack.
        match unsafe { (self.api.module_function)(&mut handle, module, name.as_ptr()) } {
            code if code.is_success() => Ok(Some(handle)),
            NOT_FOUND => Ok(None),
            code => Err(code),
        }
    }

    /// Loads a kernel: one of this build's before those that the caller brought.
    fn load(&mut self, kernel: &'static str) -> Result<Function> {
        let failed = |text: String| Error::new(Kind::Device, format!("cuda: {kernel}: {text}"));
        let name = CString::new(kernel).map_err(|e| failed(e.to_string()))?;
        let served = |image: &Image| self.sm90 || !image.sm90;
        let at = self.images.iter().position(|i| served(i) && i.kernel(kernel).is_some());
        let mut modules = Vec::new();
        match at {
            Some(at) => modules.push(self.module(at)?),
            None => modules.extend(self.own.iter().map(Module::get)),
        }
        let mut found = None;
        for module in modules {
            let looked = self.find(module, &name);
            let at = |code| self.api.failed(format!("cuModuleGetFunction: {kernel}"), code);
            found = looked.map_err(at)?;
            if found.is_some() {
                break;
            }
        }
        let handle =
            found.ok_or_else(|| failed("no kernel of this name for this device".to_owned()))?;
        let waits =
            at.and_then(|at| self.images[at].kernel(kernel)).is_some_and(|kernel| kernel.waits);
        // Code for other devices does not wait.
        let early = waits && self.sm90;
        Ok(Function { handle, shared: SHARED_DEFAULT, sizes: self.sizes(kernel, handle)?, early })
    }

    /// Asks for the sizes of a kernel's parameters; `None` where the driver does not tell.
    fn sizes(&self, kernel: &str, handle: Handle) -> Result<Option<Vec<u8>>> {
        let Some(ask) = self.api.param_info else { return Ok(None) };
        let mut sizes = Vec::new();
        loop {
            let (mut offset, mut size) = (0, 0);
            // SAFETY: the function is alive; the call writes two numbers that live on this stack.
            match unsafe { ask(handle, sizes.len(), &mut offset, &mut size) } {
                code if code.is_success() => sizes.push(u8::try_from(size).unwrap_or(u8::MAX)),
                // What the documentation says of an index behind the last parameter.
                Code::INVALID_VALUE => return Ok(Some(sizes)),
                code => {
                    return Err(self.api.failed(format!("cuFuncGetParamInfo: {kernel}"), code));
                }
            }
        }
    }

    /// Returns a kernel that may use the launch's shared memory and takes arguments of its sizes.
    pub(super) fn ready(&mut self, launch: &Launch, device: &str, most: u32) -> Result<Ready> {
        if !self.functions.contains_key(launch.kernel) {
            let loaded = self.load(launch.kernel)?;
            self.functions.insert(launch.kernel, loaded);
        }
        let failed =
            |text: String| Error::new(Kind::Device, format!("cuda: {launch}, {device}: {text}"));
        let Some(function) = self.functions.get_mut(launch.kernel) else {
            return Err(failed("not loaded".to_owned()));
        };
        if let Some(wanted) = &function.sizes
            && wanted != launch.args.sizes()
        {
            let got = launch.args.sizes();
            return Err(failed(format!("argument sizes {got:?}, wanted {wanted:?}")));
        }
        if launch.shared > most {
            return Err(failed(format!("a block has at most {most} bytes of shared memory"))
                .hint("this device cannot run the kernel: use another one, or --device cpu"));
        }
        if launch.shared > function.shared {
            // SAFETY: the function is alive.
            let code = unsafe {
                (self.api.function_set)(function.handle, MAX_DYNAMIC_SHARED, launch.shared as i32)
            };
            if !code.is_success() {
                return Err(self
                    .api
                    .failed(format!("cuFuncSetAttribute: {launch}, {device}"), code));
            }
            function.shared = launch.shared;
        }
        Ok(Ready { handle: function.handle, early: function.early })
    }
}
