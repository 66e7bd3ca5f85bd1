//! The dtype of an imported folder, and the numbers in it.

use super::*;

#[test]
fn every_format_gives_the_numbers_computed_by_hand() {
    let formats = [("F32", F32), ("F16", F16), ("BF16", BF16)];
    let blocks = [("Q8_0", Q8_0), ("Q4_0", Q4_0), ("Q4_1", Q4_1)];
    for (name, id) in formats.into_iter().chain(blocks) {
        let writer = Writer::model("llama", id);
        let (dir, done) = imported(&writer);
        let dtype = match name {
            "F32" => Dtype::F32,
            "F16" => Dtype::F16,
            _ => Dtype::Bf16,
        };
        let exact = by_hand(&writer, true, Dtype::F32);
        check_weights(&dir, &by_hand(&writer, true, dtype), dtype);
        let rounded = exact.values().flatten().filter(|x| stored(dtype, **x) != **x).count();
        assert_eq!((done.dtype, done.rounded), (dtype, rounded));
        assert_eq!(rounded == 0, id == F32, "{name}: norms are F32 in every file");
        let config = json(&dir, "config.json");
        let named = ["float32", "float16", "bfloat16"];
        let named =
            named[[Dtype::F32, Dtype::F16, Dtype::Bf16].iter().position(|d| *d == dtype).unwrap()];
        assert_eq!((&config["dtype"], &config["torch_dtype"]), (&named.into(), &named.into()));
        let norms = 2 * LAYERS + 1;
        assert_eq!(done.formats[name], if id == F32 { 20 } else { 20 - norms });
        assert!(done.tied);
        assert_eq!((done.tensors, done.layers, done.tokens), (20, LAYERS, tokens().len()));
        assert_eq!(done.name.as_deref(), Some("Tiny"));
    }
}

#[test]
fn dtypes_that_hold_no_others_numbers_make_a_wider_folder() {
    let mut writer = Writer::model("llama", F16);
    writer.add("output.weight", &[tokens().len(), WIDTH], BF16);
    let (dir, done) = imported(&writer);
    assert_eq!((done.dtype, done.rounded), (Dtype::F32, 0));
    check_weights(&dir, &by_hand(&writer, true, Dtype::F32), Dtype::F32);
}

#[test]
fn a_dtype_that_is_asked_for_is_used_or_refused() {
    let writer = Writer::model("llama", F32);
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("m.gguf");
    std::fs::write(&file, writer.bytes(3)).unwrap();
    let done = import(&file, &dir.path().join("hf"), Some(Dtype::F16)).unwrap();
    assert!(done.rounded > 0);
    check_weights(&dir, &by_hand(&writer, true, Dtype::F16), Dtype::F16);
    let error = import(&file, &dir.path().join("no"), Some(Dtype::I8)).unwrap_err();
    assert_eq!(
        (error.kind(), error.message()),
        (Kind::Config, "dtype I8: wanted F32, F16 or BF16")
    );

    let mut large = Writer::model("llama", F32);
    let bytes = &mut large.tensors.get_mut("output_norm.weight").unwrap().bytes;
    bytes[..4].copy_from_slice(&70_000f32.to_le_bytes());
    std::fs::write(&file, large.bytes(3)).unwrap();
    let error = import(&file, &dir.path().join("hf"), Some(Dtype::F16)).unwrap_err();
    assert!(
        error
            .message()
            .ends_with("output_norm.weight: holds 70000, wanted a finite number within F16")
    );
    assert_eq!(error.hint_text(), Some("--dtype f32 has the range for it"));
}
