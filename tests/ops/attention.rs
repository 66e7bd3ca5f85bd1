//! Rotary positions and attention over packed documents against finite differences, and generation's attention
//! against that of training.

use nepenthe::backend::cpu::Cpu;
use nepenthe::ops::{AttentionSaved, CachePlace, Compute, Direction, Heads, PackData, RopeTable};

use crate::support::{Dtype, Random, assert_gradient, assert_near, tol};
use crate::{documents, load, stale};

/// Document lengths with heads H, G, D and window: one block and several, windows inside a document, H/G of 1, 2, 3.
const CASES: [(&[usize], Heads); 9] = [
    (&[1], heads(1, 1, 1, None)),
    (&[3, 1, 41], heads(2, 2, 3, None)),
    (&[41, 1, 3, 1], heads(2, 1, 3, None)),
    (&[3, 41], heads(3, 1, 41, None)),
    (&[41, 3, 1], heads(6, 2, 3, Some(3))),
    (&[1, 41, 3], heads(4, 2, 3, Some(1))),
    (&[1, 401, 3], heads(2, 1, 3, None)),
    (&[401, 41], heads(3, 1, 3, Some(41))),
    (&[41, 401], heads(1, 1, 1, Some(401))),
];

const fn heads(h: usize, g: usize, d: usize, window: Option<usize>) -> Heads {
    Heads { h, g, d, window, cap: None }
}

/// The cases, and the shorter ones with a cap that bends their scores.
fn cases() -> impl Iterator<Item = (&'static [usize], Heads)> {
    let capped = CASES.into_iter().filter(|(lengths, _)| lengths.iter().all(|len| *len < 401));
    CASES
        .into_iter()
        .chain(capped.map(|(lengths, heads)| (lengths, Heads { cap: Some(0.4), ..heads })))
}

#[test]
fn attention_backward_matches_differences() {
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(14);
    for (lengths, heads) in cases() {
        let data = documents(lengths, 41, &mut random);
        let (pack, n) = (load(&ops, &data), data.tokens());
        let qkv = random.vec(n * heads.qkv_width());
        let dout = random.vec(n * heads.out_width());
        let eval = |qkv: &Vec<f64>| {
            let (mut out, mut lse) = (stale(n * heads.out_width()), stale(n * heads.h));
            ops.attention(&pack, heads, qkv, &mut out, &mut lse);
            (out, lse)
        };
        let (out, lse) = eval(&qkv);
        let mut dqkv = stale(qkv.len());
        ops.attention_bwd(
            &pack,
            heads,
            AttentionSaved { qkv: &qkv, out: &out, lse: &lse },
            &dout,
            &mut dqkv,
        );
        let name = format!("attention {lengths:?} {heads:?}");
        let terms = heads.d + lengths.iter().max().unwrap();
        assert_gradient(&name, terms, &qkv, &dqkv, &dout, &mut |x| eval(&x.to_vec()).0);
    }
}

/// Attention written down once more, query by query, with the mask as a condition.
fn plain(data: &PackData, heads: Heads, qkv: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let Heads { h, g, d, window, cap } = heads;
    let (n, width) = (data.tokens(), heads.qkv_width());
    let (mut out, mut lse) = (vec![0.0; n * h * d], vec![0.0; n * h]);
    let document = |t: usize| data.starts.iter().filter(|s| **s as usize <= t).count();
    for t in 0..n {
        for head in 0..h {
            let row = |at: usize, column: usize| &qkv[at * width + column * d..][..d];
            let kv = head * g / h;
            let seen: Vec<usize> = (0..=t)
                .filter(|&s| document(s) == document(t) && window.is_none_or(|w| t - s < w))
                .collect();
            let score = |s: usize| {
                let dot: f64 = row(t, head).iter().zip(row(s, h + kv)).map(|(a, b)| a * b).sum();
                let score = dot / (d as f64).sqrt();
                cap.map_or(score, |cap| cap * (score / cap).tanh()).exp()
            };
            let total: f64 = seen.iter().map(|&s| score(s)).sum();
            lse[t * h + head] = total.ln();
            for s in seen {
                let p = score(s) / total;
                for (i, v) in row(s, h + g + kv).iter().enumerate() {
                    out[(t * h + head) * d + i] += p * v;
                }
            }
        }
    }
    (out, lse)
}

#[test]
fn attention_forward_is_the_masked_softmax() {
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(15);
    for (lengths, heads) in cases() {
        let data = documents(lengths, 41, &mut random);
        let (pack, n) = (load(&ops, &data), data.tokens());
        let qkv = random.vec(n * heads.qkv_width());
        let (mut out, mut lse) = (stale(n * heads.out_width()), stale(n * heads.h));
        ops.attention(&pack, heads, &qkv, &mut out, &mut lse);
        let (want, want_lse) = plain(&data, heads, &qkv);
        let name = format!("attention {lengths:?} {heads:?}");
        let allowed = tol(Dtype::F64, heads.d + lengths.iter().max().unwrap());
        assert_near(&name, &out, &want, allowed);
        assert_near(&name, &lse, &want_lse, allowed);
    }
}

#[test]
fn documents_of_a_pack_do_not_see_each_other() {
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(16);
    let heads = heads(2, 1, 3, None);
    let width = heads.qkv_width();
    let data = documents(&[3, 1, 41], 41, &mut random);
    let mut qkv = random.vec(45 * width);
    let run = |qkv: &Vec<f64>| {
        let (mut out, mut lse) = (stale(45 * 6), stale(45 * 2));
        let pack = load(&ops, &data);
        ops.attention(&pack, heads, qkv, &mut out, &mut lse);
        let mut dqkv = stale(45 * width);
        ops.attention_bwd(
            &pack,
            heads,
            AttentionSaved { qkv, out: &out, lse: &lse },
            &vec![1.0; 45 * 6],
            &mut dqkv,
        );
        (out, dqkv)
    };
    let (out, dqkv) = run(&qkv);
    qkv[3 * width..4 * width].iter_mut().for_each(|x| *x += 1.0);
    let (out2, dqkv2) = run(&qkv);
    assert_ne!(out[3 * 6..4 * 6], out2[3 * 6..4 * 6]);
    for (a, b, w) in [(out, out2, 6), (dqkv, dqkv2, width)] {
        assert_eq!(a[..3 * w], b[..3 * w]);
        assert_eq!(a[4 * w..], b[4 * w..]);
    }
}

#[test]
fn rope_backward_matches_differences() {
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(17);
    // The whole head, part of it, a scaled table; positions far apart take the sparse way through the table.
    let cases: [(usize, usize, usize, usize, f64); 3] =
        [(1, 1, 2, 1, 1.0), (4, 2, 6, 3, 1.0), (3, 1, 41, 3, 1.5)];
    for (h, g, d, half, scale) in cases {
        let heads = heads(h, g, d, None);
        let table =
            RopeTable { inv_freq: (0..half).map(|i| 0.1f64.powi(i as i32)).collect(), scale };
        for far in [false, true] {
            let mut data = documents(&[3, 1, 41], 41, &mut random);
            if far {
                data.positions.iter_mut().for_each(|p| *p = 401 * *p + 3);
            }
            let pack = load(&ops, &data);
            let len = data.tokens() * heads.qkv_width();
            let (qkv, dy) = (random.vec(len), random.vec(len));
            let run = |x: &[f64], direction| {
                let mut x = x.to_vec();
                ops.rope(&pack, heads, &table, direction, &mut x);
                x
            };
            let grad = run(&dy, Direction::Backward);
            let name = format!("rope {heads:?} {half} {far}");
            assert_gradient(&name, 2, &qkv, &grad, &dy, &mut |x| run(x, Direction::Forward));
            // Values and what lies behind the rotated width stay as they are; pairs keep their length.
            let turned = run(&qkv, Direction::Forward);
            let heads_of = |x: &[f64]| x.chunks(d).map(<[f64]>::to_vec).collect::<Vec<_>>();
            for (i, (a, b)) in heads_of(&qkv).iter().zip(heads_of(&turned)).enumerate() {
                if i % (h + 2 * g) >= h + g {
                    assert_eq!(*a, b);
                }
                assert_eq!(a[2 * half..], b[2 * half..]);
                for j in 0..half {
                    let length = |x: &[f64]| x[j].hypot(x[j + half]);
                    let both = if i % (h + 2 * g) < h + g { scale } else { 1.0 };
                    let want = [length(a) * both];
                    assert_near("pair", &[length(&b)], &want, tol(Dtype::F64, 2));
                }
            }
        }
    }
}

#[test]
fn decoding_sees_what_a_whole_pass_sees() {
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(18);
    for (_, heads) in cases() {
        let lengths = [41, 1, 3];
        let data = documents(&lengths, 41, &mut random);
        let (pack, n, width) = (load(&ops, &data), data.tokens(), heads.qkv_width());
        let qkv = random.vec(n * width);
        let (mut want, mut lse) = (stale(n * heads.out_width()), stale(n * heads.h));
        ops.attention(&pack, heads, &qkv, &mut want, &mut lse);
        let cache = CachePlace { start: heads.g * heads.d, slots: 4, capacity: 41 };
        let mut room = stale(cache.start + cache.len(heads));
        // Slots in another order than documents; the last token of each is decoded, all before are stored first.
        let slots = vec![3, 0, 2];
        let ends: Vec<usize> = data.starts[1..].iter().map(|e| *e as usize - 1).collect();
        let mut all = data.clone();
        all.slots = slots.clone();
        ops.cache_store(&load(&ops, &all), heads, &qkv, &mut room, cache);
        let single = PackData {
            ids: vec![0; 3],
            positions: lengths.iter().map(|l| *l as u32 - 1).collect(),
            starts: vec![0, 1, 2, 3],
            targets: vec![0; 3],
            coefs: vec![0.0; 3],
            slots,
            ..PackData::default()
        };
        let rows: Vec<u32> = ends.iter().map(|e| *e as u32).collect();
        let mut last = stale(3 * width);
        ops.gather_rows(width, &rows, &qkv, &mut last);
        let mut out = stale(3 * heads.out_width());
        ops.decode_attention(&load(&ops, &single), heads, &last, &room, cache, &mut out);
        let mut expected = stale(3 * heads.out_width());
        ops.gather_rows(heads.out_width(), &rows, &want, &mut expected);
        let name = format!("decode {heads:?}");
        assert_near(&name, &out, &expected, tol(Dtype::F64, heads.d + 41));
    }
}
