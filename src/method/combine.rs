//! Gradients of loss and penalties put together: added, or with regard to each other's direction.

use super::loss::named;
use crate::error::Result;
use crate::model::Model;
use crate::model::params::Keeping;
use crate::model::sink::{Gradients, clear};
use crate::ops::{Memory, Ops};

/// Result of combining the gradients of a step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Combined {
    /// Cosine between the gradients of the first two terms, where both have one.
    pub cosine: Option<f64>,
    /// Factor of each term's gradient; empty where they are added.
    pub factors: Vec<f64>,
}

/// The way in which the gradients of the terms become the gradient of a step.
pub trait Combine<O: Ops>: Send {
    /// Tells whether terms have gradients of their own.
    fn separates(&self) -> bool {
        false
    }
    /// Returns the buffers for the gradient of term `i`; `None` adds it to the model's.
    fn buffers(&mut self, i: usize) -> Option<&mut Gradients<O>> {
        let _ = i;
        None
    }
    /// Empties all buffers.
    fn clear(&mut self, ops: &O) {
        let _ = ops;
    }
    /// Combines the gradients in `grads`, the model's.
    fn combine(&mut self, ops: &O, grads: &mut Gradients<O>) -> Combined {
        let _ = (ops, grads);
        Combined::default()
    }
}

/// The sum of all gradients, accumulated in the model's buffers.
#[derive(Debug, Clone, Copy)]
pub struct Sum;

impl<O: Ops> Combine<O> for Sum {}

/// Gradients of the terms in separate buffers, combined by their inner products.
pub struct Separate<M: Memory> {
    combination: Combination,
    /// Gradients of all terms but the first, whose are the model's.
    pub grads: Vec<Gradients<M>>,
}

impl<M: Memory> Separate<M> {
    /// Allocates buffers for `terms` terms of `model`.
    pub fn new(
        memory: &M,
        combination: Combination,
        model: &Model<M>,
        keep: &Keeping,
        terms: usize,
    ) -> Result<Self> {
        let grads = (1..terms).map(|_| model.more_grads(memory, keep)).collect::<Result<_>>()?;
        Ok(Self { combination, grads })
    }
}

impl<O: Ops> Combine<O> for Separate<O> {
    fn separates(&self) -> bool {
        true
    }

    fn buffers(&mut self, i: usize) -> Option<&mut Gradients<O>> {
        self.grads.get_mut(i.checked_sub(1)?)
    }

    fn clear(&mut self, ops: &O) {
        self.grads.iter_mut().for_each(|grads| clear(ops, grads));
    }

    /// Waits for the passes: the factors follow from inner products.
    fn combine(&mut self, ops: &O, grads: &mut Gradients<O>) -> Combined {
        let gram = gram::<O>(ops, grads, &self.grads);
        let factors = self.combination.factors(&gram);
        for (i, other) in self.grads.iter().enumerate() {
            // The first term's own factor once, the sum so far unchanged from then on.
            let keep = if i == 0 { factors[0] } else { 1.0 };
            for (own, other) in grads.iter_mut().zip(other) {
                if let (Some(own), Some(other)) = (own, other) {
                    ops.grad_mix(own, keep, other, factors[i + 1]);
                }
            }
        }
        let (ff, fr, rr) = (gram[0][0], gram[0][1], gram[1][1]);
        let cosine = (ff > 0.0 && rr > 0.0).then(|| fr / (ff * rr).sqrt());
        Combined { cosine, factors }
    }
}

/// Returns the inner products over all parameters of the gradients of all terms; waits for the passes.
fn gram<O: Ops>(ops: &O, first: &Gradients<O>, others: &[Gradients<O>]) -> Vec<Vec<f64>> {
    let all: Vec<&Gradients<O>> = std::iter::once(first).chain(others).collect();
    let mut gram = vec![vec![0.0; all.len()]; all.len()];
    for i in 0..all.len() {
        for j in i..all.len() {
            let pairs = all[i].iter().flatten().zip(all[j].iter().flatten());
            let product: f64 = pairs.map(|(a, b)| ops.grad_dot(a, b)).sum();
            gram[i][j] = product;
            gram[j][i] = product;
        }
    }
    gram
}

/// Combinations of the gradients of loss, f, and penalties, r and s, into a descent direction; all carry their weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Combination {
    /// f + r + s, in one buffer.
    Sum,
    /// f without its component against r, then without that against s, plus both.
    ///
    /// Source: arXiv 2001.06782 (PCGrad), of which only the loss gives way; so does GRU's projection.
    Project,
    /// The shortest of all mixtures: no other direction of its length descends the worst of all faster.
    ///
    /// Source: MGDA, arXiv 1810.04650, section 3.2; MOLLM, arXiv 2412.20412, with three.
    MinNorm,
}

impl Combination {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sum, Self::Project, Self::MinNorm];

    /// Returns its name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Project => "project",
            Self::MinNorm => "min_norm",
        }
    }

    /// Returns the direction, as a report prints it.
    pub fn formula(self) -> &'static str {
        match self {
            Self::Sum => "f + r (+ s)",
            Self::Project => "f - min(0, f.r)/|r|^2 r, likewise against s, + r (+ s)",
            Self::MinNorm => "a f + b r (+ c s) of least length, a, b, c at least 0, their sum 1",
        }
    }

    /// Makes it for `terms` terms of `model`, with buffers for their gradients where it needs them.
    pub fn prepare<O: Ops>(
        self,
        ops: &O,
        model: &Model<O>,
        keep: &Keeping,
        terms: usize,
    ) -> Result<Box<dyn Combine<O>>> {
        Ok(match self.separate(ops, model, keep, terms)? {
            None => Box::new(Sum),
            Some(separate) => Box::new(separate),
        })
    }

    /// Allocates the buffers of `terms` terms of `model`, where they are kept separate.
    pub fn separate<M: Memory>(
        self,
        memory: &M,
        model: &Model<M>,
        keep: &Keeping,
        terms: usize,
    ) -> Result<Option<Separate<M>>> {
        let needed = self != Self::Sum && terms > 1;
        needed.then(|| Separate::new(memory, self, model, keep, terms)).transpose()
    }

    /// Finds a combination by name.
    pub fn find(name: &str) -> Result<Self> {
        named("method.combine", name, Self::ALL.map(|c| (c.name(), c)))
    }

    /// Returns the factor of each gradient, the loss's first, given their inner products `gram[i][j]`, two or three of
    /// them.
    ///
    /// A product that is no number gives factors of 1: the update then finds what is wrong with the gradients.
    pub fn factors(self, gram: &[Vec<f64>]) -> Vec<f64> {
        let ones = vec![1.0; gram.len()];
        if !gram.iter().flatten().all(|x| x.is_finite()) {
            return ones;
        }
        match self {
            Self::Sum => ones,
            Self::Project => {
                let mut loss = vec![0.0; gram.len()];
                loss[0] = 1.0;
                for i in 1..gram.len() {
                    let against: f64 = loss.iter().zip(gram).map(|(a, row)| a * row[i]).sum();
                    if against < 0.0 && gram[i][i] > 0.0 {
                        loss[i] -= against / gram[i][i];
                    }
                }
                loss[1..].iter_mut().for_each(|own| *own += 1.0);
                loss
            }
            Self::MinNorm => min_norm(gram),
        }
    }
}

/// Returns the weights, at least 0 and of sum 1, whose mixture of gradients with inner products `gram` is shortest.
///
/// The shortest mixture lies inside the corner, edge or face of some of them, where it is a small linear system: each is
/// solved, and the best that is a mixture is taken. What has no gradient, as a divergence from the model that a run starts
/// from has none at its first step, is at its best and left out: no mixture with it would ever move.
fn min_norm(gram: &[Vec<f64>]) -> Vec<f64> {
    let k = gram.len();
    let length = |w: &[f64]| -> f64 {
        (0..k)
            .flat_map(|i| (0..k).map(move |j| (i, j)))
            .map(|(i, j)| w[i] * w[j] * gram[i][j])
            .sum()
    };
    let mut best = (f64::INFINITY, vec![1.0 / k as f64; k]);
    for chosen in 1u32..1 << k {
        let members: Vec<usize> = (0..k).filter(|i| chosen >> i & 1 == 1).collect();
        if members.iter().any(|i| gram[*i][*i] == 0.0) {
            continue;
        }
        let Some(inside) = flattest(gram, &members) else { continue };
        let mut weights = vec![0.0; k];
        members.iter().zip(inside).for_each(|(i, w)| weights[*i] = w);
        let squared = length(&weights);
        if squared < best.0 {
            best = (squared, weights);
        }
    }
    best.1
}

/// Returns the weights of sum 1 at which the mixture of `members` has the same product with each of them, if there are
/// such and none is below 0.
fn flattest(gram: &[Vec<f64>], members: &[usize]) -> Option<Vec<f64>> {
    // (g_0 - g_i) . sum w_j g_j = 0 for every i behind the first, and sum w = 1: by elimination.
    let k = members.len();
    let mut rows: Vec<Vec<f64>> = Vec::with_capacity(k);
    for i in 1..k {
        let row = members.iter().map(|j| gram[members[0]][*j] - gram[members[i]][*j]);
        rows.push(row.chain([0.0]).collect());
    }
    rows.push(vec![1.0; k + 1]);
    for column in 0..k {
        let pivot =
            (column..k).max_by(|a, b| rows[*a][column].abs().total_cmp(&rows[*b][column].abs()))?;
        rows.swap(column, pivot);
        let own = rows[column].clone();
        if own[column] == 0.0 {
            return None;
        }
        for (_, row) in rows.iter_mut().enumerate().filter(|(i, _)| *i != column) {
            let factor = row[column] / own[column];
            row.iter_mut().zip(&own).for_each(|(x, own)| *x -= factor * own);
        }
    }
    let weights: Vec<f64> = rows.iter().enumerate().map(|(i, row)| row[k] / row[i]).collect();
    weights.iter().all(|w| *w >= 0.0 && w.is_finite()).then_some(weights)
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::abs_diff_eq;

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    fn gram(of: &[&[f64]]) -> Vec<Vec<f64>> {
        of.iter().map(|a| of.iter().map(|b| dot(a, b)).collect()).collect()
    }

    fn mixed(of: &[&[f64]], weights: &[f64]) -> Vec<f64> {
        (0..of[0].len()).map(|i| of.iter().zip(weights).map(|(g, w)| w * g[i]).sum()).collect()
    }

    const CASES: [&[&[f64]]; 7] = [
        &[&[1.0, -2.0, 0.5], &[0.5, 1.0, 2.0]],
        &[&[3.0, 0.0, 0.0], &[1.0, 0.0, 0.0]],
        &[&[0.1, 0.0, 0.0], &[5.0, 1.0, 0.0]],
        &[&[1.0, -2.0, 0.5], &[0.5, 1.0, 2.0], &[-0.3, 0.2, 0.4]],
        &[&[1.0, 0.0, 0.0], &[0.0, 2.0, 0.0], &[0.0, 0.0, 3.0]],
        &[&[1.0, 0.2, 0.0], &[1.0, -0.3, 0.1], &[9.0, 0.0, 4.0]],
        // Two of them equal: a face that has no single solution.
        &[&[1.0, 1.0, 0.0], &[1.0, 1.0, 0.0], &[-0.5, 0.1, 0.0]],
    ];

    #[test]
    fn projection_leaves_nothing_against_the_penalty() {
        let of: [&[f64]; 2] = [&[1.0, -2.0, 0.5], &[0.5, 1.0, 2.0]];
        let factors = Combination::Project.factors(&gram(&of));
        let left = mixed(&of, &[factors[0], factors[1] - 1.0]);
        assert!(dot(&left, of[1]).abs() < 1e-12 && dot(of[0], of[1]) < 0.0);
        // Gradients that agree are added.
        assert_eq!(Combination::Project.factors(&gram(&[&[1.0, 0.2], &[1.0, 0.0]])), [1.0, 1.0]);
        assert_eq!(Combination::Project.factors(&gram(&[&[1.0, 0.2], &[0.0, 0.0]])), [1.0, 1.0]);
    }

    #[test]
    fn projection_gives_way_to_one_penalty_after_the_other() {
        let of: [&[f64]; 3] = [&[-1.0, -1.0, 1.0], &[1.0, 0.0, 0.0], &[0.0, 1.0, 0.0]];
        let factors = Combination::Project.factors(&gram(&of));
        assert_eq!(mixed(&of, &factors), [1.0, 1.0, 1.0]);
    }

    #[test]
    fn min_norm_is_the_shortest_mixture_and_descends_all() {
        for of in CASES {
            let weights = Combination::MinNorm.factors(&gram(of));
            assert!(abs_diff_eq!(weights.iter().sum::<f64>(), 1.0, epsilon = 1e-12), "{weights:?}");
            assert!(weights.iter().all(|w| *w >= 0.0), "{weights:?}");
            let best = mixed(of, &weights);
            let grid = || (0..=60).map(|k| f64::from(k) / 60.0);
            for (a, b) in grid().flat_map(|a| grid().map(move |b| (a, b * (1.0 - a)))) {
                let other = match of.len() {
                    2 => mixed(of, &[a, 1.0 - a]),
                    _ => mixed(of, &[a, b, 1.0 - a - b]),
                };
                assert!(dot(&best, &best) <= dot(&other, &other) + 1e-12);
            }
            // The defining property of the minimum: at least its own length along all.
            for g in of {
                assert!(dot(&best, g) >= dot(&best, &best) - 1e-12, "{of:?}");
            }
        }
        assert_eq!(Combination::MinNorm.factors(&vec![vec![0.0; 2]; 2]), [0.5, 0.5]);
        // At its best already: the others are mixed without it.
        let two = Combination::MinNorm.factors(&gram(&[CASES[0][0], &[0.0; 3], CASES[0][1]]));
        let alone = Combination::MinNorm.factors(&gram(CASES[0]));
        assert_eq!(two, [alone[0], 0.0, alone[1]]);
        let broken = [vec![f64::NAN, 0.0], vec![0.0, 1.0]];
        assert_eq!(Combination::MinNorm.factors(&broken), [1.0, 1.0]);
    }
}
