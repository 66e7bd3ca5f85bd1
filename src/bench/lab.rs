//! The bench itself: random operands, copies of them that outgrow the cache, the clock, and the record.

use std::cell::Cell;
use std::sync::Arc;

use super::floors::Floor;
use super::rival::Rival;
use super::{Measurement, Origin, Roofs, median};
use crate::backend::gpu::driver::Driver;
use crate::backend::gpu::{Act, Gpu, Grad, Precision};
use crate::error::{Error, Kind, Result};
use crate::ops::{Memory, StateMode, Transfer};
use crate::rng::Stream;

/// Laps that do not count: the first ones meet a cold clock.
const WARMUP: usize = 3;
/// Numbers that are drawn for a buffer; a longer one holds them again and again. A prime, so that no two rows of a
/// matrix are alike.
const DRAWN: usize = 65_521;
/// Bytes that the device sets before the first lap, once for every [`LEAD_LAPS`] laps: some 0.4 ms of an H100.
const LEAD: u64 = 1 << 30;
/// Laps that the host can start in the time that [`LEAD`] takes.
const LEAD_LAPS: usize = 50;

/// Work on one set of operands.
pub(super) type OnSet<'a, T> = &'a mut dyn FnMut(&mut T) -> Result<()>;

/// A device at measurement.
#[derive(Debug)]
pub struct Lab {
    driver: Arc<dyn Driver>,
    precision: Precision,
    repeat: usize,
    origin: Origin,
    /// Competing GEMM library.
    pub(super) rival: Rival,
    /// Measured peak rates of the device; 0 until measured.
    pub(super) roofs: Roofs,
    drawn: Cell<u64>,
}

/// A measured case without its time.
#[derive(Debug)]
pub(super) struct Case {
    /// The family.
    pub kind: &'static str,
    /// Model and op.
    pub name: String,
    /// The sizes.
    pub shape: String,
    /// Its FLOP and byte floor.
    pub floor: Floor,
}

impl Lab {
    /// Sets up a device; every op is timed `repeat` times.
    pub fn new(
        driver: Arc<dyn Driver>,
        precision: Precision,
        repeat: usize,
        origin: Origin,
    ) -> Self {
        let roofs = Roofs { flops: 0.0, bytes: 0.0 };
        let rival = Rival::open(&driver);
        let drawn = Cell::new(0);
        Self { driver, precision, repeat: repeat.max(1), origin, rival, roofs, drawn }
    }

    /// Returns why no rival is measured.
    pub fn why_no_rival(&self) -> Option<String> {
        self.rival.why_none()
    }

    /// Takes the device for one case, of which `planned` bytes are known beforehand; all of it goes back with the case.
    pub(super) fn gpu(&self, planned: u64) -> Result<Gpu> {
        Gpu::new(self.driver.clone(), self.precision, planned)
    }

    /// Returns the precision of storage.
    pub(super) fn precision(&self) -> Precision {
        self.precision
    }

    /// Returns the device's driver.
    pub(super) fn driver(&self) -> &dyn Driver {
        self.driver.as_ref()
    }

    /// Returns the bytes of a stored number.
    pub(super) fn stored(&self) -> f64 {
        self.precision.bytes() as f64
    }

    /// Returns the mode whose gradients are stored like activations.
    pub(super) fn mode(&self) -> StateMode {
        match self.precision {
            Precision::Bf16 => StateMode::Compact,
            Precision::Fp32 => StateMode::Exact,
        }
    }

    /// Returns how often an op is timed.
    pub(super) fn repeat(&self) -> usize {
        self.repeat
    }

    /// Draws `len` numbers of mean 0 and standard deviation `scale`; every call draws others.
    pub(super) fn numbers(&self, len: usize, scale: f32) -> Vec<f32> {
        let call = self.drawn.replace(self.drawn.get() + 1);
        let stream = Stream::new(1, "bench");
        let number = |i: usize| {
            // The sum of four uniform numbers is close to normal; its variance is 1/3.
            let bits = stream.bits(call, i as u64);
            let sum: u64 = (0..4).map(|part| bits >> (16 * part) & 0xffff).sum();
            (sum as f32 / 65536.0 - 2.0) * 3f32.sqrt() * scale
        };
        (0..len).map(number).collect()
    }

    /// Makes `len` random activations of standard deviation `scale`.
    pub(super) fn act(&self, gpu: &Gpu, len: usize, scale: f32) -> Result<Act> {
        let mut act = gpu.act(len)?;
        let numbers = self.numbers(len.min(DRAWN), scale);
        gpu.write_act(&numbers, &mut act);
        self.spread(act.address(), numbers.len(), len, self.precision.bytes())?;
        Ok(act)
    }

    /// Fills a gradient of `len` numbers; what comes next adds to it.
    pub(super) fn fill_grad(&self, gpu: &Gpu, grad: &mut Grad, len: usize) -> Result<()> {
        let numbers = self.numbers(len.min(DRAWN), 1e-3);
        gpu.write_grad(grad, &numbers)?;
        self.spread(grad.address(), numbers.len(), len, grad.number_bytes())
    }

    /// Fills host numbers, as [`Lab::act`] does.
    pub(super) fn fill(&self, out: &mut [f32], scale: f32) {
        let numbers = self.numbers(out.len().min(DRAWN), scale);
        out.chunks_mut(DRAWN).for_each(|piece| piece.copy_from_slice(&numbers[..piece.len()]));
    }

    /// Repeats the first `written` of `len` numbers of `bytes` bytes to the end.
    fn spread(&self, at: u64, mut written: usize, len: usize, bytes: u64) -> Result<()> {
        while written > 0 && written < len {
            let n = written.min(len - written);
            self.driver.copy(at, at + written as u64 * bytes, n as u64 * bytes)?;
            written += n;
        }
        Ok(())
    }

    /// Makes as many sets of operands as it takes for a set to have left the cache when its turn comes again.
    pub(super) fn sets<T>(
        &self,
        floor: Floor,
        make: impl FnMut(usize) -> Result<T>,
    ) -> Result<Vec<T>> {
        (0..copies(self.driver.identity().cache_bytes, floor.bytes)).map(make).collect()
    }

    /// Times `run` on the sets in turn and returns the median, in seconds.
    pub(super) fn time<T>(
        &self,
        gpu: &Gpu,
        sets: &mut [T],
        mut run: impl FnMut(&mut T) -> Result<()>,
    ) -> Result<f64> {
        self.laps(gpu, sets, self.repeat, &mut run, None)
    }

    /// Times `run` on the sets in turn, `repeat` times; `restore` makes a set anew after its turn and is not timed.
    ///
    /// All launches are in flight at once: the device first sets memory for as long as the host needs to get ahead, so
    /// that no lap holds a launch's latency.
    pub(super) fn laps<T>(
        &self,
        gpu: &Gpu,
        sets: &mut [T],
        repeat: usize,
        run: OnSet<'_, T>,
        mut restore: Option<OnSet<'_, T>>,
    ) -> Result<f64> {
        for set in &mut *sets {
            // Loads kernels, lets scratch grow, writes what is written.
            run(set)?;
            restore.as_mut().map_or(Ok(()), |restore| restore(set))?;
        }
        gpu.sync()?;
        let (laps, each) = (WARMUP + repeat, 1 + usize::from(restore.is_some()));
        // The simulator has no queue to fill.
        let lead = if self.driver.stream().is_some() { self.driver.alloc(LEAD)? } else { 0 };
        let count = sets.len();
        let seconds = self.driver.laps(each * laps, &mut |lap| {
            if lead != 0 && lap == 0 {
                let fills = (each * laps).div_ceil(LEAD_LAPS);
                (0..fills).try_for_each(|_| self.driver.fill(lead, 0, LEAD))?;
            }
            let set = &mut sets[lap / each % count];
            match &mut restore {
                Some(restore) if lap % each == 1 => restore(set),
                _ => run(set),
            }
        });
        self.driver.free(lead);
        gpu.sync()?;
        let timed: Vec<f64> = seconds?.into_iter().step_by(each).skip(WARMUP).collect();
        Ok(median(&timed))
    }

    /// Fails where an op left something that is no number: its time means nothing.
    pub(super) fn check(&self, what: &str, numbers: &[f32]) -> Result<()> {
        if numbers.iter().all(|x| x.is_finite()) {
            return Ok(());
        }
        Err(Error::new(
            Kind::Device,
            format!("{what}: the result holds numbers that are not finite"),
        ))
    }

    /// Reads the first numbers of a result and checks them.
    pub(super) fn check_act(&self, gpu: &Gpu, what: &str, act: &Act, len: usize) -> Result<()> {
        let mut numbers = vec![0.0; len.min(DRAWN)];
        gpu.read_act(act, &mut numbers);
        gpu.sync()?;
        self.check(what, &numbers)
    }

    /// Like [`Lab::check_act`], for a gradient.
    pub(super) fn check_grad(&self, gpu: &Gpu, what: &str, grad: &Grad, len: usize) -> Result<()> {
        let mut numbers = vec![0.0; len.min(DRAWN)];
        gpu.read_grad(grad, &mut numbers);
        gpu.sync()?;
        self.check(what, &numbers)
    }

    /// Records a case that took `seconds`, and the rival's seconds on it.
    pub(super) fn record(&self, case: Case, seconds: f64, rival: Option<f64>) -> Measurement {
        let Case { kind, name, shape, floor } = case;
        let (amount, unit) = if floor.flop > 0.0 {
            (floor.flop / 1e12, "TFLOP/s")
        } else {
            (floor.bytes / 1e9, "GB/s")
        };
        let roof = (self.roofs.flops > 0.0).then(|| floor.seconds(&self.roofs));
        self.line((kind, name, shape), seconds, (amount, unit), [roof, rival])
    }

    /// Records `amount` units done in `seconds`, beside the seconds of roof and rival.
    pub(super) fn line(
        &self,
        (kind, name, shape): (&'static str, String, String),
        seconds: f64,
        (amount, unit): (f64, &'static str),
        [roof, rival]: [Option<f64>; 2],
    ) -> Measurement {
        Measurement {
            kind,
            name,
            shape,
            dtype: self.precision.name(),
            median_us: seconds * 1e6,
            rate: amount / seconds,
            unit,
            roof: roof.map(|roof| amount / roof),
            roof_share: roof.map(|roof| roof / seconds),
            rival: rival.map(|_| Rival::NAME),
            rival_rate: rival.map(|rival| amount / rival),
            predicted: None,
            origin: self.origin.clone(),
            memory: None,
        }
    }
}

/// Returns how many sets of `bytes` bytes pass twice a cache of `cache` bytes.
fn copies(cache: u64, bytes: f64) -> usize {
    (2.0 * cache as f64 / bytes.max(1.0)).ceil().max(1.0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_pass_twice_the_cache() {
        assert_eq!(copies(50 << 20, (30 << 20) as f64), 4);
        assert_eq!(copies(50 << 20, (200 << 20) as f64), 1);
        assert_eq!(copies(0, 0.0), 1);
    }
}
