//! Rows of .parquet files, the form in which data sets are downloaded from Hugging Face.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};

/// Reads all rows of the file `path` as JSON objects.
///
/// Errors: [`crate::Kind::Data`] for a broken file, or a compression other than snappy.
#[cfg(feature = "parquet")]
pub(super) fn rows(path: &Path) -> Result<Vec<Value>> {
    use parquet::file::reader::{FileReader, SerializedFileReader};

    let wrong = |e: parquet::errors::ParquetError| {
        Error::data(format!("not a .parquet file that can be read: {e}"))
            .hint("uncompressed and snappy files are read; .jsonl always works")
    };
    let file = std::fs::File::open(path).map_err(|e| Error::data(format!("cannot read: {e}")))?;
    let reader = SerializedFileReader::new(file).map_err(wrong)?;
    let rows = reader.get_row_iter(None).map_err(wrong)?;
    let object = |row: parquet::record::Row| {
        let fields = row.into_columns().into_iter();
        Value::Object(fields.map(|(name, field)| (name, value(&field))).collect())
    };
    rows.map(|row| row.map(object).map_err(wrong)).collect()
}

/// Says that this build reads none.
#[cfg(not(feature = "parquet"))]
pub(super) fn rows(_path: &Path) -> Result<Vec<Value>> {
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
