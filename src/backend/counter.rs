//! A backend that holds nothing and counts the bytes of what is built on it.

use std::cell::Cell;

use crate::error::Result;
use crate::ops::{HeadShape, Memory, ParamSpec, Planes, Role, Sizes};

/// Bytes counted, by what they hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Weights that train.
    pub trainable: u64,
    /// Frozen weights.
    pub frozen: u64,
    /// The teacher.
    pub teacher: u64,
    /// State of the optimizer.
    pub optimizer: u64,
    /// Gradients.
    pub gradients: u64,
    /// Scalars of parameters and partial scans of gradients.
    pub scans: u64,
    /// Activations.
    pub activations: u64,
    /// Statistics of rows, packs and sums.
    pub rows: u64,
    /// Logits of a chunk of rows, and what goes with them.
    pub logits: u64,
}

impl Counted {
    /// Returns all bytes.
    pub fn total(&self) -> u64 {
        let Self { trainable, frozen, teacher, optimizer, gradients, .. } = self;
        let Self { scans, activations, rows, logits, .. } = self;
        [trainable, frozen, teacher, optimizer, gradients, scans, activations, rows, logits]
            .into_iter()
            .sum()
    }
}

/// The counting backend: buffers are their lengths.
pub struct Counter {
    sizes: Box<dyn Sizes>,
    counted: Cell<Counted>,
}

impl Counter {
    /// Makes a counter for a backend that takes these sizes.
    pub fn new(sizes: impl Sizes + 'static) -> Self {
        Self { sizes: Box::new(sizes), counted: Cell::default() }
    }

    /// Returns what was counted since the last call, and starts anew.
    pub fn take(&self) -> Counted {
        self.counted.take()
    }

    fn add(&self, bytes: u64, to: impl Fn(&mut Counted) -> &mut u64) {
        let mut counted = self.counted.get();
        *to(&mut counted) += self.sizes.taken(bytes);
        self.counted.set(counted);
    }
}

impl Memory for Counter {
    type Act = usize;
    type Stat = ();
    type Pack = ();
    type Tally = ();
    type Grad = ();
    type Param = ParamSpec;

    fn act(&self, len: usize) -> Result<usize> {
        self.add(len as u64 * self.sizes.act() as u64, |counted| &mut counted.activations);
        Ok(len)
    }

    fn stat(&self, len: usize) -> Result<()> {
        self.add(len as u64 * self.sizes.stat() as u64, |counted| &mut counted.rows);
        Ok(())
    }

    fn pack(&self, tokens: usize) -> Result<()> {
        for bytes in self.sizes.pack(tokens) {
            self.add(bytes, |counted| &mut counted.rows);
        }
        Ok(())
    }

    fn len(&self, act: &usize) -> usize {
        *act
    }

    fn tally_room(&self) -> Result<()> {
        self.add(self.sizes.tally(), |counted| &mut counted.rows);
        Ok(())
    }

    /// Counts a parameter as `spec` describes it, also one that no backend would keep; `init` has nothing to fill.
    fn param(
        &self,
        spec: &ParamSpec,
        _init: &mut dyn FnMut(&mut [f32]) -> Result<()>,
    ) -> Result<ParamSpec> {
        let Planes { theta, low, teacher, first, second, scales } = self.sizes.planes(spec);
        for plane in [theta, low] {
            self.add(plane.bytes(), |counted| match spec.trainable {
                true => &mut counted.trainable,
                false => &mut counted.frozen,
            });
        }
        self.add(teacher.bytes(), |counted| &mut counted.teacher);
        for plane in [first, second, scales] {
            self.add(plane.bytes(), |counted| &mut counted.optimizer);
        }
        self.add(self.sizes.scalars(spec), |counted| &mut counted.scans);
        Ok(spec.clone())
    }

    fn grad(&self, spec: &ParamSpec) -> Result<()> {
        let (plane, scans) = self.sizes.gradient(spec);
        self.add(plane.bytes(), |counted| &mut counted.gradients);
        self.add(scans, |counted| &mut counted.scans);
        Ok(())
    }

    fn reserve(&self, shape: HeadShape, matched: bool) -> Result<()> {
        for bytes in self.sizes.head(shape, matched) {
            self.add(bytes, |counted| &mut counted.logits);
        }
        Ok(())
    }

    fn needs_scratch(&self, param: &ParamSpec, role: Role) -> bool {
        self.sizes.needs_scratch(param, role)
    }
}
