//! One document before tokenisation.

use std::borrow::Cow;

use xxhash_rust::xxh3::xxh3_64;

/// One document before tokenisation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Document {
    /// Text to be tokenised.
    Text(String),
    /// A question and its answer, which make one text.
    Question {
        /// The question.
        question: String,
        /// The answer.
        answer: String,
    },
    /// Ids to be used as they are.
    Ids(Vec<u32>),
}

impl Document {
    /// Returns the text, in the form in which it is trained on; `None` for ids.
    pub fn text(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Text(text) => Some(Cow::Borrowed(text)),
            Self::Question { question, answer } => {
                Some(Cow::Owned(format!("Question: {question}\nAnswer: {answer}")))
            }
            Self::Ids(_) => None,
        }
    }

    /// Returns the text that a model continues: a question without its answer, and without the blank before it, which
    /// most tokenizers make a part of the answer's first token; `None` for ids.
    pub fn prompt(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Question { question, .. } => {
                Some(Cow::Owned(format!("Question: {question}\nAnswer:")))
            }
            _ => self.text(),
        }
    }

    /// Returns a hash that is equal for equal documents.
    pub(super) fn hash(&self) -> u64 {
        match self {
            Self::Ids(ids) => xxh3_64(bytemuck::cast_slice(ids)),
            _ => xxh3_64(self.text().unwrap_or_default().as_bytes()),
        }
    }
}
