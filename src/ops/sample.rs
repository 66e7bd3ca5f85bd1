//! The choice of a token from a row of logits in generation. The CPU backend runs this code; a device's kernels give the
//! same choice up to rounding.

/// Numbers by which a token is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; positive.
    pub temperature: f64,
    /// Share of probability kept, in (0, 1].
    pub top_p: f64,
}

/// Returns the id of the largest logit: the smallest id among equals. NaN never wins; 0 where nothing else is there.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best: Option<(usize, f32)> = None;
    for (id, z) in logits.iter().enumerate() {
        if !z.is_nan() && best.is_none_or(|(_, top)| *z > top) {
            best = Some((id, *z));
        }
    }
    best.map_or(0, |(id, _)| id as u32)
}

/// Returns `exp((z - max) / temperature)` of every logit; 0 for those that the smallest set of most probable tokens
/// with a share of `top_p` leaves out, and for NaN. Of equals, smaller ids come first.
pub fn kept_weights(logits: &[f32], sampling: Sampling) -> Vec<f64> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut weights: Vec<f64> = logits
        .iter()
        .map(|z| match *z {
            // Also where both are infinite.
            z if z == top => 1.0,
            z if z.is_nan() => 0.0,
            z => (f64::from(z - top) / sampling.temperature).exp(),
        })
        .collect();
    if sampling.top_p < 1.0 {
        let mut order: Vec<usize> = (0..weights.len()).collect();
        order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
        let wanted = sampling.top_p * weights.iter().sum::<f64>();
        let mut kept = 0.0;
        for id in order {
            if kept >= wanted {
                weights[id] = 0.0;
            } else {
                kept += weights[id];
            }
        }
    }
    weights
}

/// Draws a token with `u`, uniform in [0, 1): the first id at which the running sum of the kept weights passes the
/// share `u` of them all. 0 where every logit is NaN.
pub fn sample(logits: &[f32], sampling: Sampling, u: f64) -> u32 {
    let weights = kept_weights(logits, sampling);
    let mut left = u * weights.iter().sum::<f64>();
    let mut last = 0;
    for (id, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
        last = id as u32;
        left -= weight;
        if left < 0.0 {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Sampling = Sampling { temperature: 1.0, top_p: 1.0 };

    #[test]
    fn argmax_takes_the_smallest_of_equal_ids_and_no_nan() {
        assert_eq!(argmax(&[0.0, 2.0, 2.0]), 1);
        assert_eq!(argmax(&[f32::NAN, -1.0, f32::NAN, -0.5]), 3);
        assert_eq!(argmax(&[f32::NAN, f32::NEG_INFINITY]), 1);
        assert_eq!(argmax(&[f32::NAN, f32::NAN]), 0);
        assert_eq!(argmax(&[-0.0, 0.0]), 0);
    }

    #[test]
    fn sample_with_tiny_top_p_is_greedy() {
        let sampling = Sampling { top_p: 1e-9, ..PLAIN };
        for i in 0..50 {
            let u = f64::from(i) / 50.0;
            assert_eq!(sample(&[0.0, 1.0, 3.0, 3.0, 2.0], sampling, u), 2);
        }
    }

    #[test]
    fn sample_follows_the_probabilities() {
        let logits = [1f32.ln(), 3f32.ln(), f32::NEG_INFINITY, f32::NAN, 4f32.ln()];
        let count = |sampling: Sampling| {
            let mut counts = [0; 5];
            for i in 0..800 {
                counts[sample(&logits, sampling, (f64::from(i) + 0.5) / 800.0) as usize] += 1;
            }
            counts
        };
        assert_eq!(count(PLAIN), [100, 300, 0, 0, 400]);
        // Without the least probable one.
        assert_eq!(count(Sampling { top_p: 0.8, ..PLAIN }), [0, 343, 0, 0, 457]);
        // Squares of the weights.
        assert_eq!(count(Sampling { temperature: 0.5, ..PLAIN }), [31, 277, 0, 0, 492]);
    }

    #[test]
    fn sample_has_an_answer_for_rows_without_numbers() {
        assert_eq!(sample(&[f32::NAN, f32::NAN], PLAIN, 0.7), 0);
        assert_eq!(sample(&[f32::NEG_INFINITY, f32::NEG_INFINITY], PLAIN, 0.7), 1);
        assert_eq!(sample(&[0.0, f32::INFINITY], PLAIN, 0.0), 1);
    }
}
