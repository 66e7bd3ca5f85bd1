//! Rows of .parquet files, the form in which data sets are downloaded from Hugging Face.

use std::fs::File;
#[cfg(feature = "parquet")]
use std::io::Seek;

use serde_json::Value;

use super::records::{Records, Summary, hash};
use crate::error::{Error, Result};

/// Hands all rows of `file` to `records`; an error names the number of the row, from 1.
pub(super) fn documents(name: &str, file: &File, mut records: Records<'_>) -> Result<Summary> {
    let failed =
        |e: std::io::Error| Error::data(format!("{name}: cannot read: {e}")).with_source(e);
    let hash = hash(file).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let mut row = 0;
    let mut inside = false;
    let outcome = rows(file, &mut |value| {
        row += 1;
        inside = true;
        let outcome = records.add_value(value, row);
        inside = outcome.is_err();
        outcome
    });
    // Errors of a row name their place already.
    outcome.map_err(|e| if inside { e } else { e.at(name) })?;
    records.finish(hash, bytes)
}

/// Hands all rows of `file` to `sink` as JSON objects.
///
/// Errors: [`crate::Kind::Data`] for a broken file or a compression other than snappy, and whatever `sink` returns.
#[cfg(feature = "parquet")]
pub(super) fn rows(file: &File, sink: &mut dyn FnMut(Value) -> Result<()>) -> Result<()> {
    use parquet::file::reader::{FileReader, SerializedFileReader};

    let wrong = |e: parquet::errors::ParquetError| {
        Error::data(format!("not a .parquet file that can be read: {e}"))
            .with_source(e)
            .hint("uncompressed and snappy files are read; .jsonl always works")
    };
    let cannot = |e: std::io::Error| Error::data(format!("cannot read: {e}")).with_source(e);
    let mut file = file.try_clone().map_err(cannot)?;
    file.rewind().map_err(cannot)?;
    let reader = SerializedFileReader::new(file).map_err(wrong)?;
    for row in reader.get_row_iter(None).map_err(wrong)? {
        let fields = row.map_err(wrong)?.into_columns().into_iter();
        sink(Value::Object(fields.map(|(name, field)| (name, value(&field))).collect()))?;
    }
    Ok(())
}

/// Says that this build reads none.
#[cfg(not(feature = "parquet"))]
pub(super) fn rows(_file: &File, _sink: &mut dyn FnMut(Value) -> Result<()>) -> Result<()> {
    Err(Error::data("this build reads no .parquet files").hint(
        "build with --features parquet, or convert it: datasets.load_dataset(...).to_json(\"data.jsonl\")",
    ))
}

#[cfg(feature = "parquet")]
fn value(field: &parquet::record::Field) -> Value {
    use parquet::record::Field;
    match field {
        Field::Bool(x) => (*x).into(),
        Field::Byte(x) => (*x).into(),
        Field::Short(x) => (*x).into(),
        Field::Int(x) => (*x).into(),
        Field::Long(x) => (*x).into(),
        Field::UByte(x) => (*x).into(),
        Field::UShort(x) => (*x).into(),
        Field::UInt(x) => (*x).into(),
        Field::ULong(x) => (*x).into(),
        Field::Float(x) => (*x).into(),
        Field::Double(x) => (*x).into(),
        Field::Str(x) => x.as_str().into(),
        Field::Group(row) => Value::Object(
            row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect(),
        ),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        // Dates, decimals, maps and bytes have no place in these files; a field that is asked for is reported as null.
        _ => Value::Null,
    }
}
