//! State as checkpoints keep it.

use bytemuck::Zeroable;

use super::{Param, Store, Tensor};
use crate::backend::gpu::Gpu;
use crate::error::{Error, Result};
use crate::ops::TeacherForm;
use crate::ops::format::{EXPONENT_LIMIT, MOMENT_BLOCK, from_block, widen};
use crate::ops::param::MOMENT_SCALES;

/// A state buffer on the device.
struct Buffer {
    /// Its name in a checkpoint.
    name: &'static str,
    at: u64,
    /// Bytes of a number.
    size: usize,
    /// Number of elements.
    len: usize,
}

impl Param {
    /// Returns the state buffers that exist.
    fn buffers(&self) -> Vec<Buffer> {
        let [one, two] = self.rule.moment_names();
        let len = self.len;
        let of = |name, at, size| Buffer { name, at, size, len };
        let all = match self.store {
            Store::Frozen(_) => Vec::new(),
            Store::Exact { theta, form, teacher, first, second } => {
                let name = if form == TeacherForm::Full { "teacher" } else { "drift" };
                vec![
                    of("theta", theta, 4),
                    of(name, teacher, 4),
                    of(one, first, 4),
                    of(two, second, 4),
                ]
            }
            Store::Split { hi, lo, drift, first, second, scales } => vec![
                of("theta_hi", hi, 2),
                of("theta_lo", lo, 2),
                of("drift", drift, 2),
                of(one, first, if scales == 0 { 2 } else { 1 }),
                of(two, second, 2),
                Buffer { len: len.div_ceil(MOMENT_BLOCK), ..of(MOMENT_SCALES, scales, 4) },
            ],
        };
        all.into_iter().filter(|buffer| buffer.at != 0).collect()
    }
}

impl Gpu {
    pub(in crate::backend::gpu) fn save(
        &self,
        param: &Param,
        write: &mut dyn FnMut(&str, &[u8]) -> Result<()>,
    ) -> Result<()> {
        if param.tensor == 0 {
            return Ok(());
        }
        for Buffer { name, at, size, len } in param.buffers() {
            let mut bytes = vec![0u8; len * size];
            self.download(at, &mut bytes)?;
            write(name, &bytes)?;
        }
        let tensor = self.read_tensor(param);
        self.take_failure()?;
        let maxima = [tensor.max_drift, tensor.max_moment, tensor.max_theta].map(f64::to_bits);
        let words =
            [tensor.counter, i64::from(tensor.exponent) as u64, maxima[0], maxima[1], maxima[2]];
        write("scalars", &words.map(u64::to_le_bytes).concat())
    }

    pub(in crate::backend::gpu) fn load(
        &self,
        param: &mut Param,
        read: &mut dyn FnMut(&str, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        if param.tensor == 0 {
            return Ok(());
        }
        for Buffer { name, at, size, len } in param.buffers() {
            let mut bytes = vec![0u8; len * size];
            read(name, &mut bytes)?;
            self.upload(at, &bytes)?;
        }
        let mut words = [[0u8; 8]; 5];
        read("scalars", words.as_flattened_mut())?;
        let [counter, exponent, max_drift, max_moment, max_theta] = words.map(u64::from_le_bytes);
        let mut tensor = Tensor { counter, ..Tensor::zeroed() };
        if param.is_split() {
            let exponent = exponent as i64;
            if exponent.unsigned_abs() > EXPONENT_LIMIT as u64 {
                return Err(Error::data(format!(
                    "saved state: drift exponent {exponent} is not within {EXPONENT_LIMIT}"
                )));
            }
            tensor.exponent = exponent as i32;
            tensor.max_drift = f64::from_bits(max_drift);
            tensor.max_moment = f64::from_bits(max_moment);
            tensor.max_theta = f64::from_bits(max_theta);
        }
        self.upload(param.tensor, bytemuck::bytes_of(&tensor))
    }

    /// Copies a moment to the host in fp32; false where it does not exist.
    pub(in crate::backend::gpu) fn moment(
        &self,
        param: &Param,
        name: &str,
        out: &mut [f32],
    ) -> bool {
        let wanted = param.rule.moment_names().contains(&name) && !name.is_empty();
        let buffers = param.buffers();
        let find = |name: &str| buffers.iter().find(|buffer| buffer.name == name);
        match find(name).filter(|_| wanted) {
            Some(Buffer { at, size: 4, .. }) => self.read_f32(*at, 0, out),
            Some(Buffer { at, size: 2, .. }) => {
                let narrow = self.read_u16(*at, 0, out.len());
                out.iter_mut().zip(narrow).for_each(|(to, from)| *to = widen(from));
            }
            Some(Buffer { at, len, .. }) => {
                let mut bytes = vec![0i8; *len];
                self.keep(self.download(*at, bytemuck::cast_slice_mut(&mut bytes)));
                let mut scales = vec![0f32; len.div_ceil(MOMENT_BLOCK)];
                if let Some(buffer) = find(MOMENT_SCALES) {
                    self.read_f32(buffer.at, 0, &mut scales);
                }
                let blocks = bytes.chunks(MOMENT_BLOCK).zip(scales);
                for (to, (block, scale)) in out.chunks_mut(MOMENT_BLOCK).zip(blocks) {
                    to.iter_mut().zip(block).for_each(|(to, q)| *to = from_block(*q, scale));
                }
            }
            None => return false,
        }
        true
    }
}
