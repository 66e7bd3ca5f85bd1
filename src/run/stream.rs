//! The documents of a run, and the order in which they are sampled.

use std::path::Path;

use super::recipe::{OrderKey, Recipe};
use crate::data::{
    Chunking, Corpus, CorpusOptions, MicroBatch, Order, Sampler, Tokenizer, draw, first,
};
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::report::notices;

/// A corpus with the order its documents are drawn in.
pub(crate) struct Stream {
    pub(crate) corpus: Corpus,
    /// A preferred document for each of the corpus.
    pub(crate) alternate: Option<Corpus>,
    sampler: Sampler,
    accum: usize,
    micro_batch: usize,
}

impl Stream {
    /// Draws the micro-batches of a step.
    pub(crate) fn draw(&self, step: u64) -> Result<Vec<MicroBatch>> {
        let of = |corpus| draw(corpus, &self.sampler, step, self.accum, self.micro_batch);
        let Some(alternate) = &self.alternate else { return of(&self.corpus) };
        let pair = |(own, other): (MicroBatch, MicroBatch)| {
            MicroBatch::new((0..own.rows()).flat_map(|b| [own.row(b), other.row(b)]))
        };
        Ok(of(&self.corpus)?.into_iter().zip(of(alternate)?).map(pair).collect())
    }

    /// Returns the first `count` documents of the corpus, or all, in micro-batches.
    pub(crate) fn first(&self, count: usize) -> Result<Vec<MicroBatch>> {
        first(&self.corpus, count, self.micro_batch)
    }

    /// Returns the tokens of the longest documents that must lie in one pack.
    pub(crate) fn longest(&self) -> usize {
        self.corpus.longest() + self.alternate.as_ref().map_or(0, Corpus::longest)
    }
}

/// Says how many rows of the forget corpus are in the retain corpus too: they are to be forgotten and kept at once.
pub(crate) fn overlap(recipe: &Recipe, forget: &Stream, retain: &Stream) -> Option<String> {
    let data = &recipe.data;
    let most = data.forget_context.min(data.retain_context);
    let (shared, all) = (forget.corpus.shared_rows(&retain.corpus, most), forget.corpus.len());
    (shared > 0).then(|| {
        format!(
            "{}{} and {}: {shared} of {all} rows to be forgotten are in the retain set too: the run would keep what it \
             is to forget",
            notices::WARNING,
            data.forget.display(),
            data.retain.display()
        )
    })
}

/// Counts the forget documents of `recipe`, chunks where they are chunked, for the model in `dir`; reads its tokenizer, not its
/// weights.
///
/// Errors: those of reading tokenizer and data.
pub fn forget_documents(dir: &Path, recipe: &Recipe) -> Result<usize> {
    let tokenizer = Tokenizer::open(dir)?;
    let options = corpus_options(recipe, true);
    Ok(Corpus::open(&recipe.data.forget, &tokenizer, &options)?.len())
}

/// Returns how the forget or the retain documents of a recipe are cut and cached.
fn corpus_options(recipe: &Recipe, forget: bool) -> CorpusOptions {
    let data = &recipe.data;
    let (context, chunk) = match forget {
        true => (data.forget_context, data.forget_chunking),
        false => (data.retain_context, data.retain_chunking),
    };
    CorpusOptions {
        context,
        chunking: if chunk { Chunking::Chunk } else { Chunking::Truncate },
        cache_dir: data.cache_dir(),
    }
}

/// Opens the forget or the retain corpus of a recipe.
pub(crate) fn stream(
    recipe: &Recipe,
    folder: &mut Folder,
    tokenizer: &Tokenizer,
    forget: bool,
) -> Result<Stream> {
    let data = &recipe.data;
    let (path, accum, name, key) = match forget {
        true => (&data.forget, recipe.run.forget_accum_steps, "forget", "data.forget_context"),
        false => (&data.retain, recipe.run.kl_accum_steps, "retain", "data.retain_context"),
    };
    let options = corpus_options(recipe, forget);
    let corpus = folder.corpus(path, tokenizer, &options, key)?;
    let named = forget && !data.alternate.as_os_str().is_empty();
    let alternate =
        named.then(|| folder.corpus(&data.alternate, tokenizer, &options, key)).transpose()?;
    if let Some(found) = alternate.as_ref().map(Corpus::len).filter(|len| *len != corpus.len()) {
        return Err(Error::data(format!(
            "data.alternate: {found} documents, wanted one for each of the {} forget documents",
            corpus.len()
        )));
    }
    let order = match data.order {
        OrderKey::Replacement => Order::Replacement,
        OrderKey::Epochs => Order::Epochs,
    };
    let sampler = Sampler::new(order, recipe.seed, name, corpus.len())?;
    Ok(Stream { corpus, alternate, sampler, accum, micro_batch: recipe.run.micro_batch })
}
