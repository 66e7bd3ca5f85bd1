//! Gradient sinks: the first write of a step overwrites, later ones add.

use super::{Real, filled};
use crate::error::Result;
use crate::ops::format::{narrow_even, widen};
use crate::ops::{ParamSpec, Plane, StateMode};

/// A gradient: wide in exact mode, bf16 in compact mode.
#[derive(Debug, Clone)]
pub struct Grad<T> {
    pub(crate) data: GradData<T>,
    pub(crate) empty: bool,
}

/// The storage of a [`Grad`].
#[derive(Debug, Clone)]
pub(crate) enum GradData<T> {
    /// One compute-type number per entry.
    Wide(Vec<T>),
    /// One bf16 per entry, rounded to nearest even after each accumulation, which itself is done wide.
    Bf16(Vec<u16>),
}

impl<T: Real> Grad<T> {
    /// Allocates the empty gradient of a parameter.
    pub(super) fn new(spec: &ParamSpec) -> Result<Self> {
        let (name, Plane { len, .. }) = (&spec.name, spec.gradient(size_of::<T>()));
        let data = match spec.mode {
            StateMode::Exact => GradData::Wide(filled(name, len, T::ZERO)?),
            _ => GradData::Bf16(filled(name, len, 0u16)?),
        };
        Ok(Self { data, empty: true })
    }

    /// Makes an empty gradient of `len` entries in the compute type.
    pub fn wide(len: usize) -> Self {
        Self { data: GradData::Wide(vec![T::ZERO; len]), empty: true }
    }

    /// Makes an empty gradient of `len` entries in bf16.
    pub fn bf16(len: usize) -> Self {
        Self { data: GradData::Bf16(vec![0; len]), empty: true }
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        match &self.data {
            GradData::Wide(data) => data.len(),
            GradData::Bf16(data) => data.len(),
        }
    }

    /// Tells whether it has no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the entries out; zeros where nothing was written yet.
    pub fn read(&self, out: &mut [T]) {
        match &self.data {
            _ if self.empty => out.fill(T::ZERO),
            GradData::Wide(data) => out.copy_from_slice(data),
            GradData::Bf16(data) => {
                out.iter_mut().zip(data).for_each(|(x, &b)| *x = T::from_f32(widen(b)));
            }
        }
    }

    fn at(&self, i: usize) -> T {
        match &self.data {
            _ if self.empty => T::ZERO,
            GradData::Wide(data) => data[i],
            GradData::Bf16(data) => T::from_f32(widen(data[i])),
        }
    }

    /// Returns the sum of products with `other`, in f64 and in order.
    pub(super) fn dot(&self, other: &Self) -> f64 {
        (0..self.len()).map(|i| self.at(i).to_f64() * other.at(i).to_f64()).sum()
    }

    /// Becomes `keep self + add other`.
    pub(super) fn mix(&mut self, keep: f64, other: &Self, add: f64) {
        let (keep, add) = (T::from_f64(keep), T::from_f64(add));
        for i in 0..self.len() {
            let mixed = keep * self.at(i) + add * other.at(i);
            match &mut self.data {
                GradData::Wide(data) => data[i] = mixed,
                GradData::Bf16(data) => data[i] = narrow_even(mixed.to_f32()),
            }
        }
        self.empty = false;
    }

    /// Adds `values` from entry `start` on. The first write of a step must be announced by [`Grad::open`].
    pub(super) fn add(&mut self, start: usize, values: &[T]) {
        match &mut self.data {
            GradData::Wide(data) => {
                data[start..].iter_mut().zip(values).for_each(|(x, v)| *x += *v);
            }
            GradData::Bf16(data) => data[start..].iter_mut().zip(values).for_each(|(x, v)| {
                *x = narrow_even((T::from_f32(widen(*x)) + *v).to_f32());
            }),
        }
    }

    /// Zeroes an empty gradient so that [`Grad::add`] may write to parts of it.
    pub(super) fn open(&mut self) {
        if self.empty {
            match &mut self.data {
                GradData::Wide(data) => data.fill(T::ZERO),
                GradData::Bf16(data) => data.fill(0),
            }
            self.empty = false;
        }
    }
}
