//! Rotary settings of config.json.

use super::reader::Reader;
use super::{RopeConfig, RopeScaling};
use crate::error::{Error, Result};
use crate::model::family::{PARTIAL, Rotary};

/// The keys of rotary sections, that of transformers 5 first.
pub(super) const SECTIONS: [&str; 2] = ["rope_parameters", "rope_scaling"];

/// The section for layers with a window, inside of `rope_parameters`.
const LOCAL: &str = "sliding_attention";

/// Returns the rotary section for layers without a window.
///
/// Errors: two sections that differ in more than the base, which only the first may have.
pub(super) fn section<'a>(json: &Reader<'a>) -> Result<Option<Reader<'a>>> {
    let [new, old] = SECTIONS.map(|key| {
        let section = json.root.get(key).filter(|section| section.is_object())?;
        // Where kinds of layers differ, there is a section for each kind.
        Some(Reader { root: section.get("full_attention").unwrap_or(section) })
    });
    if let (Some(new), Some(old)) = (&new, &old)
        && (scaling(new)? != scaling(old)? || new.present(PARTIAL) != old.present(PARTIAL))
    {
        return Err(Error::model(format!(
            "config.json: {} and {} differ, wanted one of them",
            SECTIONS[0], SECTIONS[1]
        )));
    }
    Ok(new.or(old))
}

/// Returns the part of a head that config.json asks to rotate, where it says so.
pub(super) fn part(json: &Reader<'_>, rotary: &Rotary) -> Result<Option<f64>> {
    let (key, _) = rotary.part;
    let inner = section(json)?;
    match &inner {
        Some(inner) if inner.present(PARTIAL).is_some() => inner.number(PARTIAL, None).map(Some),
        _ => json.present(key).map(|_| json.number(key, None)).transpose(),
    }
}

/// Reads the rotary settings of layers without a window.
pub(super) fn rope(json: &Reader<'_>, head_width: usize, rotary: &Rotary) -> Result<RopeConfig> {
    let Rotary { base: (base, default_base), part: (part_key, default), .. } = *rotary;
    let inner = section(json)?;
    let theta = match &inner {
        Some(inner) if inner.root.get("rope_theta").is_some() => {
            inner.number("rope_theta", None)?
        }
        _ => json.number(base, Some(default_base))?,
    };
    let asked = part(json, rotary)?.unwrap_or(default);
    if !(theta > 0.0 && asked > 0.0 && asked <= 1.0) {
        return Err(Error::model(format!(
            "config.json: {base} {theta} must be positive and {part_key} {asked} in (0, 1]"
        )));
    }
    let scaling = match &inner {
        Some(inner) => scaling(inner)?,
        None => RopeScaling::Default,
    };
    let partial = if rotary.partial { asked } else { 1.0 };
    // transformers ignores the key where nothing is scaled and fails where something is.
    if partial != asked && scaling != RopeScaling::Default {
        return Err(Error::model(format!(
            "config.json: {part_key}: {asked} with scaled frequencies is not supported, wanted 1"
        )));
    }
    let width = (head_width as f64 * partial) as usize / 2 * 2;
    finite(RopeConfig { theta, width, scaling })
}

/// Returns the `rope_type` of a rotary section.
fn kind<'a>(section: &'a Reader<'_>) -> &'a str {
    match section.present("rope_type").or_else(|| section.present("type")) {
        None => "default",
        Some(value) => value.as_str().unwrap_or("?"),
    }
}

fn scaling(section: &Reader<'_>) -> Result<RopeScaling> {
    Ok(match kind(section) {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: section.number("factor", None)? },
        "llama3" => RopeScaling::Llama3 {
            factor: section.number("factor", None)?,
            low: section.number("low_freq_factor", None)?,
            high: section.number("high_freq_factor", None)?,
            original: section.number("original_max_position_embeddings", None)?,
        },
        other => {
            return Err(Error::model(format!("config.json: rope type `{other}` is not supported"))
                .hint("known are default, linear, llama3"));
        }
    })
}

/// Reads the rotary settings of layers with a window, where the family has its own for them.
pub(super) fn local_rope(
    json: &Reader<'_>,
    head_width: usize,
    rotary: &Rotary,
) -> Result<Option<RopeConfig>> {
    let Some((outer, default)) = rotary.local else { return Ok(None) };
    let section = json.root.get(SECTIONS[0]).and_then(|all| all.get(LOCAL));
    let (reader, key) = match section {
        Some(root) => (Reader { root }, "rope_theta"),
        None => (Reader { root: json.root }, outer),
    };
    let theta = reader.number(key, Some(default))?;
    if theta <= 0.0 {
        return Err(Error::model(format!("config.json: {key} {theta} must be positive")));
    }
    if section.is_some() && kind(&reader) != "default" {
        return Err(Error::model(format!(
            "config.json: {}: {LOCAL}: rope type `{}` is not supported, wanted default",
            SECTIONS[0],
            kind(&reader)
        )));
    }
    finite(RopeConfig { theta, width: head_width, scaling: RopeScaling::Default }).map(Some)
}

/// Refuses rotary settings that overflow.
fn finite(rope: RopeConfig) -> Result<RopeConfig> {
    match crate::model::rope::table(&rope).inv_freq.iter().all(|f| f.is_finite()) {
        true => Ok(rope),
        false => Err(Error::model(format!(
            "config.json: rope_theta {} and {:?} make rotary frequencies that are not finite",
            rope.theta, rope.scaling
        ))),
    }
}
