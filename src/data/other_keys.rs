//! Keys of a record beside its document: those that would change what is trained are refused, others are ignored.
//!
//! Every token of a document but the first is a target of equal weight, at its own position, in a sequence of its own. A
//! key that says otherwise is refused; one that says just that is accepted.

use serde_json::Value;

use super::json::{kind, shortened};
use crate::error::{Error, Result};

/// Keys of chats, packed sequences and inputs that are not tokens.
const UNSUPPORTED: [&str; 13] = [
    "messages",
    "conversations",
    "conversation",
    "completion",
    "segment_ids",
    "sequence_ids",
    "seq_lengths",
    "seq_lens",
    "cu_seqlens",
    "inputs_embeds",
    "pixel_values",
    "decoder_input_ids",
    "loss_type",
];

/// Checks the key `key` beside a document, of the ids `ids` where the record gives ids; returns whether it was read.
///
/// Errors: [`crate::Kind::Data`] for a key that would change what is trained.
pub(super) fn check(key: &str, value: &Value, ids: Option<&[u32]>) -> Result<bool> {
    // Writers of tables fill missing columns with null.
    if value.is_null() {
        return Ok(true);
    }
    let name = key.to_lowercase();
    if UNSUPPORTED.contains(&name.as_str()) {
        return Err(refused(
            key,
            "is not supported beside a document",
            "remove the key, or write what is to be trained as \"text\" alone",
        ));
    }
    match name.as_str() {
        // 1 marks special tokens there; it plays no part in causal language models.
        "special_tokens_mask" => Ok(false),
        "attention_mask" => {
            all(key, value, ids, 1, "write the ids without padding, and a document per record")
        }
        "labels" => labels(key, value, ids),
        "position_ids" => positions(key, value, ids),
        "token_type_ids" => all(key, value, ids, 0, "remove the key"),
        _ if ["mask", "masks"].iter().any(|end| ends_with_word(&name, end)) => all(
            key,
            value,
            ids,
            1,
            "loss masks are not supported: every token is trained; cut the record, or remove the key",
        ),
        // A weight with a unit is data about the text.
        _ if value.is_string() => Ok(false),
        _ if ["weight", "weights"].iter().any(|end| ends_with_word(&name, end)) => all(
            key,
            value,
            None,
            1,
            "weights are not supported; repeat a record, or remove the key",
        ),
        _ => Ok(false),
    }
}

fn ends_with_word(name: &str, word: &str) -> bool {
    name.strip_suffix(word).is_some_and(|head| head.is_empty() || head.ends_with('_'))
}

fn refused(key: &str, what: &str, hint: &str) -> Error {
    Error::data(format!("{:?} {what}", shortened(key))).hint(hint)
}

/// Accepts a number or a list, one for each id, that is `wanted` throughout; true counts as 1, false as 0.
fn all(key: &str, value: &Value, ids: Option<&[u32]>, wanted: u8, hint: &str) -> Result<bool> {
    let values = match value {
        Value::Array(list) => {
            check_length(key, list, ids)?;
            list.as_slice()
        }
        Value::Number(_) | Value::Bool(_) => std::slice::from_ref(value),
        other => {
            return Err(refused(
                key,
                &format!("is {}, wanted a list of {wanted}s", kind(other)),
                hint,
            ));
        }
    };
    let number =
        |value: &Value| value.as_f64().or_else(|| value.as_bool().map(|b| f64::from(u8::from(b))));
    match values.iter().position(|value| number(value) != Some(f64::from(wanted))) {
        None => Ok(true),
        Some(at) => {
            let got = shortened(&values[at].to_string());
            Err(Error::data(format!(
                "{:?}[{at}] is {got}, wanted {wanted} throughout",
                shortened(key)
            ))
            .hint(hint))
        }
    }
}

fn check_length(key: &str, list: &[Value], ids: Option<&[u32]>) -> Result<()> {
    match ids.map(<[u32]>::len).filter(|len| *len != list.len()) {
        None => Ok(()),
        Some(len) => Err(Error::data(format!(
            "{:?} has {} values, wanted {len} as \"input_ids\"",
            shortened(key),
            list.len()
        ))),
    }
}

/// Accepts labels that equal the ids; a class beside a text is none.
fn labels(key: &str, value: &Value, ids: Option<&[u32]>) -> Result<bool> {
    const HINT: &str = "masked prompts are not supported: every token of a record is trained; remove \"labels\" to train on \
         all of it, or cut the record to the part that is to be trained";
    let (Value::Array(list), Some(ids)) = (value, ids) else {
        return match value {
            Value::Array(_) => Err(refused(key, "is not supported beside a text", HINT)),
            _ if ids.is_some() => {
                Err(refused(key, &format!("is {}, wanted a list", kind(value)), HINT))
            }
            _ => Ok(false),
        };
    };
    check_length(key, list, Some(ids))?;
    let differs = list.iter().zip(ids).position(|(label, id)| label.as_u64() != Some((*id).into()));
    match differs {
        None => Ok(true),
        Some(at) => Err(Error::data(format!(
            "{:?}[{at}] is {}, wanted the id {} as in \"input_ids\"",
            shortened(key),
            shortened(&list[at].to_string()),
            ids[at]
        ))
        .hint(HINT)),
    }
}

/// Accepts positions that count from 0.
fn positions(key: &str, value: &Value, ids: Option<&[u32]>) -> Result<bool> {
    const HINT: &str =
        "positions always count from 0 in a record; write packed documents as records of their own";
    let Value::Array(list) = value else {
        return Err(refused(key, &format!("is {}, wanted a list", kind(value)), HINT));
    };
    check_length(key, list, ids)?;
    match (0u64..).zip(list).find(|(at, position)| position.as_u64() != Some(*at)) {
        None => Ok(true),
        Some((at, got)) => Err(Error::data(format!(
            "{:?}[{at}] is {}, wanted {at}",
            shortened(key),
            shortened(&got.to_string())
        ))
        .hint(HINT)),
    }
}
