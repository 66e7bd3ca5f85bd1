//! The counted model of a run, from which its bytes and operations follow.

use std::fmt;

use super::{ATTENTION_RATE, Category, Choice, PRODUCT_RATE, Target};
use crate::backend::counter::{Counted, Counter};
use crate::backend::gpu;
use crate::error::Result;
use crate::method::passes::Passes;
use crate::method::{Reference, projection};
use crate::model::params::Keeping;
use crate::model::{Level, Model, ModelConfig, Saving, generate};
use crate::ops::StateMode;
use crate::run::Recipe;

/// Longest pack considered, tokens.
const MOST_TOKENS: u64 = 1 << 38;

/// A model on the counting backend, and what it took.
pub(super) struct Count {
    counter: Counter,
    /// The model that trains.
    pub(super) model: Model<Counter>,
    /// Its parameters and gradients.
    trained: Counted,
    /// The model that losses compare with.
    base: Counted,
    /// Subspaces of a gradient projection.
    subspaces: Counted,
    /// Bytes of driver and kernels beside all buffers.
    reserve: Option<u64>,
    /// Tokens of the longest prompt that is measured with its continuation.
    prompt: Option<usize>,
    /// Tokens that a step takes gradients of, and how many there are in a document.
    steps: [(f64, usize); 2],
}

impl fmt::Debug for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trained, base, subspaces, .. } = self;
        f.debug_list().entries([trained, base, subspaces]).finish()
    }
}

impl Count {
    /// Builds the model that `recipe` trains; `tokens` are those of a pack.
    pub(super) fn new(
        config: &ModelConfig,
        recipe: &Recipe,
        mode: StateMode,
        target: Target,
        tokens: u64,
    ) -> Result<Self> {
        let (counter, method) = (target.counter(), recipe.method()?);
        let keep = recipe.keeping(mode);
        let make = |keep: &Keeping| Model::make(&counter, config.clone(), keep, &mut |_, _| Ok(()));
        let model = make(&keep)?;
        recipe.combination()?.separate(&counter, &model, &keep, method.terms.len())?;
        let trained = counter.take();
        if method.reads(Reference::Frozen) {
            make(&Keeping::inference())?;
        }
        let base = counter.take();
        if let Some(setup) = recipe.projection(tokens as usize) {
            projection::allocate(&counter, &model, setup)?;
        }
        let subspaces = counter.take();
        let (host, run) = (target == Target::Cpu, &recipe.run);
        let tokens =
            |accum: usize, context: usize| ((run.micro_batch * accum * context) as f64, context);
        let retained = if recipe.method.penalty != "none" { run.kl_accum_steps } else { 0 };
        Ok(Self {
            counter,
            model,
            trained,
            base,
            subspaces,
            reserve: (!host).then_some(gpu::RESERVE),
            // The CPU's caches are given back.
            prompt: recipe.longest_prompt().filter(|_| !host),
            steps: [
                tokens(run.forget_accum_steps, recipe.data.forget_context),
                tokens(retained, recipe.data.retain_context),
            ],
        })
    }

    /// Returns the resident bytes of parameters: weights, teacher, optimizer state, gradients, base model.
    pub(super) fn state_bytes(&self) -> u64 {
        let Counted { trainable, frozen, teacher, optimizer, gradients, .. } = self.trained;
        trainable + frozen + teacher + optimizer + gradients + self.base.total()
    }

    /// Returns what is resident beside the rows of packs; the logits are those of a pack of `tokens` tokens.
    pub(super) fn resident(&self, tokens: u64) -> Result<Vec<Category>> {
        let level = Saving::same(Level::Input);
        let ((_, empty), (_, full)) = (self.passes(level, 0)?, self.passes(level, tokens)?);
        let Counted { trainable, frozen, teacher, optimizer, gradients, scans, .. } = self.trained;
        let optional = |name, bytes: u64| (bytes > 0).then_some((name, bytes));
        let categories = [
            Some(("weights, trainable", trainable)),
            Some(("weights, frozen", frozen)),
            Some(("teacher", teacher)),
            Some(("optimizer state", optimizer)),
            Some(("gradients", gradients)),
            optional("base model", self.base.total()),
            Some(("scalars and partial scans", scans)),
            Some(("logits chunk", full.logits)),
            optional("subspaces", self.subspaces.total()),
            Some(("scratch", empty.total())),
            self.reserve.map(|bytes| ("driver and kernels", bytes)),
        ];
        let category = |(name, bytes)| Category { name, bytes };
        Ok(categories.into_iter().flatten().map(category).collect())
    }

    /// Builds the passes for packs of `tokens` tokens, and counts their buffers.
    fn passes(&self, saving: Saving, tokens: u64) -> Result<(Passes<Counter>, Counted)> {
        let passes = Passes::saving(&self.counter, &self.model, tokens as usize, Some(saving))?;
        Ok((passes, self.counter.take()))
    }

    /// Returns the bytes that each token of a pack adds, logits aside.
    pub(super) fn per_token(&self, saving: Saving) -> Result<u64> {
        // Sizes at which no buffer is rounded up.
        let [less, more] = [1024, 2048].map(|tokens| self.passes(saving, tokens));
        let of = |(_, counted): (_, Counted)| counted.total() - counted.logits;
        Ok((of(more?) - of(less?)) / 1024)
    }

    /// Returns the bytes that generation takes beside the rows that it borrows.
    pub(super) fn evaluation(&self, saving: Saving, tokens: u64) -> Result<u64> {
        self.beside(self.passes(saving, tokens)?.0)
    }

    /// Returns the bytes of the caches that do not fit in the rows of `passes`.
    fn beside(&self, mut passes: Passes<Counter>) -> Result<u64> {
        let Some(prompt) = self.prompt else { return Ok(0) };
        generate::make_room_for(&self.counter, &self.model.config, &mut passes.ws, prompt)?;
        Ok(self.counter.take().total())
    }

    /// Returns the bytes that do not depend on the passes.
    fn fixed(&self) -> u64 {
        let state = self.trained.total() + self.base.total() + self.subspaces.total();
        state + self.reserve.unwrap_or(0)
    }

    /// Returns all bytes but those of generation.
    fn training(&self, saving: Saving, tokens: u64) -> Result<u64> {
        Ok(self.fixed() + self.passes(saving, tokens)?.1.total())
    }

    /// Returns the bytes of a run with packs of `tokens` tokens.
    pub(super) fn bytes(&self, saving: Saving, tokens: u64) -> Result<u64> {
        let (passes, counted) = self.passes(saving, tokens)?;
        Ok(self.fixed() + counted.total() + self.beside(passes)?)
    }

    /// Returns the largest pack that fits. Smaller packs may lend generation less and so need more beside them.
    pub(super) fn max_tokens(&self, saving: Saving, memory: u64) -> Result<u64> {
        let mut tokens = self.most(saving, memory)?;
        while tokens > 0 && self.bytes(saving, tokens)? > memory {
            let beside = self.evaluation(saving, tokens)?;
            tokens = self.most(saving, memory.saturating_sub(beside))?.min(tokens - 1);
        }
        Ok(tokens)
    }

    /// Returns the largest pack that fits without generation.
    fn most(&self, saving: Saving, memory: u64) -> Result<u64> {
        let (mut fits, mut too_many) = (0, MOST_TOKENS);
        while fits + 1 < too_many {
            let tokens = fits + (too_many - fits) / 2;
            match self.training(saving, tokens)? <= memory {
                true => fits = tokens,
                false => too_many = tokens,
            }
        }
        Ok(fits)
    }

    /// Returns the operations and the seconds of a step that are spent on recomputing rows.
    pub(super) fn again(&self, saving: Saving) -> (f64, f64) {
        let each = self.steps.map(|(tokens, context)| {
            let [products, attention] = saving.again_flop(&self.model.config, context);
            let seconds = products / PRODUCT_RATE + attention / ATTENTION_RATE;
            (tokens * (products + attention), tokens * seconds)
        });
        (each[0].0 + each[1].0, each[0].1 + each[1].1)
    }

    /// Returns what a choice of saved rows costs.
    pub(super) fn choice(&self, saving: Saving, memory: u64) -> Result<Choice> {
        let (again_flop, again_seconds) = self.again(saving);
        Ok(Choice {
            saving,
            bytes_per_token: self.per_token(saving)?,
            max_tokens: self.max_tokens(saving, memory)?,
            again_flop,
            again_seconds,
        })
    }

    /// Returns the choice that spends least on recomputing rows, and of those the one of fewest bytes, among all whose
    /// packs of `tokens` tokens fit; the one that saves least where none does.
    pub(super) fn best(&self, tokens: u64, memory: u64) -> Result<Saving> {
        let mut best: Option<(f64, u64, Saving)> = None;
        for saving in Saving::choices(self.model.config.layers) {
            let (seconds, bytes) = (self.again(saving).1, self.bytes(saving, tokens)?);
            let better = best.is_none_or(|(least, fewest, _)| {
                seconds.total_cmp(&least).then(bytes.cmp(&fewest)).is_lt()
            });
            if bytes <= memory && better {
                best = Some((seconds, bytes, saving));
            }
        }
        Ok(best.map_or(Saving::same(Level::Input), |(.., saving)| saving))
    }
}
