//! Update rules of the caller's own: one that says what a rule built in does is equal to it bit for bit, on the CPU, on
//! a device by way of the host, and on a device by a kernel.

#[path = "../../examples/custom_rule.rs"]
mod lion;

use crate::support::Random;
use crate::support::model::weights;
use nepenthe::backend::cpu::Cpu;
use nepenthe::data::MicroBatch;
use nepenthe::method::passes::Passes;
use nepenthe::method::{FORGET, Knobs, MeanTeacher, Method, PENALTIES, Settings, WeightRule};
use nepenthe::model::params::Keeping;
use nepenthe::model::{Model, ModelConfig, Train};
use nepenthe::ops::{Ops, Role, StateMode, TeacherForm};
use nepenthe::optim::Schedule;
use nepenthe::optim::{CustomRule, DeviceView, KernelArg, TensorView, UpdateRule, UpdateScalars};
use nepenthe::{Kind, Result};

const LLAMA: &str = r#"{"model_type":"llama","hidden_size":24,"num_attention_heads":4,"num_key_value_heads":2,
    "hidden_act":"silu","vocab_size":101,"num_hidden_layers":2,"intermediate_size":41,"rms_norm_eps":1e-5,
    "attention_bias":true}"#;
const MOMENTUM: f64 = 0.9;
const STEPS: usize = 3;

/// SGD with momentum; by a kernel where `kernel` is set.
struct Sgd {
    kernel: bool,
}

impl CustomRule for Sgd {
    fn name(&self) -> &str {
        "sgd of one's own"
    }

    fn state(&self) -> [&'static str; 2] {
        ["momentum_buffer", ""]
    }

    fn update(&mut self, tensor: &mut TensorView<'_>, numbers: &UpdateScalars) -> Result<()> {
        let (momentum, lr) = (MOMENTUM as f32, numbers.lr as f32);
        assert_eq!(tensor.shape.iter().product::<usize>(), tensor.step.len(), "{}", tensor.name);
        assert!(tensor.drift.is_empty() || tensor.drift.len() == tensor.step.len());
        tensor.each(|gradient, _weight, [u, _]| {
            *u = momentum * *u + gradient;
            -lr * *u
        });
        Ok(())
    }

    fn launch(&mut self, tensor: &DeviceView<'_>, numbers: &UpdateScalars) -> Result<bool> {
        if self.kernel {
            let blocks = tensor.len.div_ceil(256) as u32;
            let args = [
                KernelArg::Ptr(tensor.gradient),
                KernelArg::Ptr(tensor.state[0]),
                KernelArg::Ptr(tensor.step),
                KernelArg::U64(tensor.len as u64),
                KernelArg::F32(MOMENTUM as f32),
                KernelArg::F32(numbers.lr as f32),
            ];
            tensor.device.launch("custom_rule_sgd", [blocks, 1, 1], 256, 0, &args)?;
        }
        Ok(self.kernel)
    }
}

fn start<O: Ops>(
    ops: &O,
    mode: StateMode,
    teacher: TeacherForm,
    rule: UpdateRule,
) -> Result<MeanTeacher<O>> {
    let config = ModelConfig::parse(LLAMA).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let [student, reference] = [51, 52].map(|seed| weights(&config, seed, folder.path()));
    let keep = Keeping { train: Some(Train::Body), mode, teacher, rule, seed: 1 };
    let mut model = Model::load(ops, config, &student, &keep)?;
    let penalty = (teacher != TeacherForm::None).then_some(PENALTIES[1]);
    if penalty.is_some() {
        model.load_teacher(ops, &reference)?;
    }
    let passes = Passes::new(ops, &model, 64, true)?;
    let settings = Settings {
        clip: 0.25,
        damping: if penalty.is_some() { 0.3 } else { 0.0 },
        teacher_rate: 0.1,
        schedule: Schedule::constant(0.05),
    };
    let penalty = penalty.map(|penalty| (penalty, WeightRule::Constant(1.0)));
    let method = Method::new((FORGET[0], 0.5), penalty, Knobs::default());
    Ok(MeanTeacher::new(model, None, passes, method, settings))
}

/// Returns the bits of student, teacher and momentum after some steps; `own` moves them where it is set.
fn bits<O: Ops>(ops: &O, teacher: TeacherForm, own: Option<Sgd>) -> Vec<(String, Vec<u32>)> {
    let rule = match &own {
        None => UpdateRule::Sgd { momentum: MOMENTUM },
        Some(own) => UpdateRule::custom(own).unwrap(),
    };
    let mut run = start(ops, StateMode::Exact, teacher, rule).unwrap();
    if let Some(own) = own {
        run.follow(Box::new(own));
    }
    let mut random = Random::new(1);
    let mut row = |len: usize| (0..len).map(|_| random.below(101) as u32).collect::<Vec<_>>();
    for _ in 0..STEPS {
        let (forget, retain) =
            ([MicroBatch::new([row(20), row(3)])], [MicroBatch::new([row(7), row(19)])]);
        let report = run.step(ops, &forget, &retain).unwrap();
        assert!(!report.skipped && report.clip_coef < 1.0, "the clip factor must count");
    }
    let mut all = Vec::new();
    let mut visit = |name: &str, values: &[f32]| {
        // Signed zeros are one number.
        all.push((name.to_owned(), values.iter().map(|x| (x + 0.0).to_bits()).collect()));
        Ok(())
    };
    run.model.visit_weights(ops, Role::Student, &mut visit).unwrap();
    run.model.visit_weights(ops, Role::Teacher, &mut visit).unwrap();
    run.model.visit_moments(ops, "momentum_buffer", &mut visit).unwrap();
    all
}

fn assert_same(got: &[(String, Vec<u32>)], want: &[(String, Vec<u32>)], case: &str) {
    assert_eq!(got.len(), want.len());
    for ((name, got), (_, want)) in got.iter().zip(want) {
        assert!(got == want, "{case}: {name} differs");
    }
}

const FORMS: [TeacherForm; 3] = [TeacherForm::None, TeacherForm::Full, TeacherForm::Drift];

#[test]
fn sgd_of_ones_own_is_the_one_built_in_bit_for_bit() {
    let ops = Cpu::<f32>::new();
    for teacher in FORMS {
        let want = bits(&ops, teacher, None);
        assert_same(
            &bits(&ops, teacher, Some(Sgd { kernel: false })),
            &want,
            &format!("{teacher:?}"),
        );
    }
}

#[cfg(feature = "sim")]
#[test]
fn a_device_gives_the_same_bits_by_a_kernel_and_by_way_of_the_host() {
    use nepenthe::backend::gpu::{Precision, driver::sim::Timing};
    for teacher in FORMS {
        let open = || crate::support::simulated(Timing::ALL[0], Precision::Fp32);
        let (Some(one), Some(two), Some(three)) = (open(), open(), open()) else { return };
        let want = bits(&one, teacher, None);
        assert_same(&bits(&two, teacher, Some(Sgd { kernel: true })), &want, "kernel");
        assert_same(&bits(&three, teacher, Some(Sgd { kernel: false })), &want, "host");
    }
}

#[cfg(feature = "sim")]
#[test]
fn the_simulator_refuses_ptx_and_says_what_to_do() {
    use nepenthe::backend::gpu::{Precision, driver::sim::Timing};
    let Some(gpu) = crate::support::simulated(Timing::ALL[0], Precision::Fp32) else { return };
    let error = gpu.load_ptx(".version 8.0").unwrap_err();
    assert_eq!(error.kind(), Kind::Device);
    assert!(error.hint_text().unwrap().contains("NEPENTHE_EXTRA_KERNELS"), "{error}");
}

#[test]
fn compact_state_and_parameters_of_another_rule_are_refused() {
    let ops = Cpu::<f32>::new();
    let own = || Sgd { kernel: false };
    let rule = UpdateRule::custom(&own()).unwrap();
    let error = start(&ops, StateMode::Compact, TeacherForm::Drift, rule).err().unwrap();
    assert!(error.message().ends_with("needs exact state, got compact"), "{error}");
    assert_eq!(error.kind(), Kind::Config);
    let batch = || [MicroBatch::new([vec![1, 2, 3, 4]])];
    // Made for a rule and moved by none, and the other way round.
    let mut run = start(&ops, StateMode::Exact, TeacherForm::Drift, rule).unwrap();
    let error = run.step(&ops, &batch(), &batch()).unwrap_err();
    assert!(error.message().contains("made for another rule"), "{error}");
    let sgd = UpdateRule::Sgd { momentum: MOMENTUM };
    let mut run = start(&ops, StateMode::Exact, TeacherForm::Drift, sgd).unwrap();
    run.follow(Box::new(own()));
    let error = run.step(&ops, &batch(), &batch()).unwrap_err();
    assert!(error.message().contains("made for another rule"), "{error}");
    let wide = Cpu::<f64>::new();
    let mut run = start(&wide, StateMode::Exact, TeacherForm::Drift, rule).unwrap();
    run.follow(Box::new(own()));
    let error = run.step(&wide, &batch(), &batch()).unwrap_err();
    assert!(error.message().contains("works in fp32"), "{error}");
}

#[test]
fn the_examples_lion_steps_by_signs_and_keeps_its_momentum() {
    let mut lion = lion::Lion { betas: [0.5, 0.75], weight_decay: 0.25 };
    let (gradient, weights) = ([0.5, -4.0, 0.0], [1.0, -2.0, 0.0]);
    let (mut momentum, mut step) = ([0.0f32, 8.0, 0.0], [9.0f32; 3]);
    let mut tensor = TensorView {
        name: "w",
        shape: &[3],
        gradient: &gradient,
        weights: &weights,
        drift: &[],
        state: [&mut momentum, &mut []],
        step: &mut step,
    };
    let numbers = UpdateScalars { step: 0, lr: 0.5, clip: 1.0, damping: 0.0, teacher_rate: 0.0 };
    lion.update(&mut tensor, &numbers).unwrap();
    assert_eq!(step, [-0.625, -0.25, 0.0]);
    assert_eq!(momentum, [0.125, 5.0, 0.0]);
}

#[test]
fn the_page_shows_the_example_as_it_is() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    let (page, example) = (read("docs/update_rules.md"), read("examples/custom_rule.rs"));
    let shown = page.split("```rust\n").nth(1).unwrap().split("```").next().unwrap();
    assert!(shown.lines().count() > 10 && example.contains(shown), "\n{shown}");
}
