//! The two families of losses: weighted target-token losses, and full-vocabulary losses, whose gradient reaches all logits.

/// The weight of a token in a target-token loss, as a formula of its probability.
///
/// With p the probability of the next token and q = 1 - p (kept as its own sum, never as a difference):
/// `weight = sign * p^p_power * q^q_power / (pole + q)`, without the division where `pole` is `None`, and 0 where
/// `threshold != 0` and `p <= threshold`. The gradient at the logits is `weight * (softmax(z) - e_y)`, the
/// returned value `weight * -log p` with the weight held constant.
///
/// It spans nll (`sign` 1), ll (-1), nlul (-1, `p_power` 1, `pole` tol), UCE (-1, 1, pole 1), WGA, SatImp.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenFormula {
    /// The factor in front; positive raises the probability of the token when descended.
    pub sign: f64,
    /// The power of p.
    pub p_power: f64,
    /// The power of q = 1 - p.
    pub q_power: f64,
    /// Term added to q in the denominator; `None` for no denominator.
    pub pole: Option<f64>,
    /// Tokens with `p <= threshold` weigh nothing; 0 switches the rule off.
    pub threshold: f64,
}

impl TokenFormula {
    /// Makes the constant weight `sign`.
    pub fn constant(sign: f64) -> Self {
        Self { sign, p_power: 0.0, q_power: 0.0, pole: None, threshold: 0.0 }
    }

    /// Returns the weight at probability `p` with `q = 1 - p` given apart.
    #[inline]
    pub fn weight(&self, p: f64, q: f64) -> f64 {
        if self.threshold != 0.0 && p <= self.threshold {
            return 0.0;
        }
        let mut weight = self.sign;
        if self.p_power != 0.0 {
            weight *= if self.p_power == 1.0 { p } else { p.powf(self.p_power) };
        }
        if self.q_power != 0.0 {
            weight *= if self.q_power == 1.0 { q } else { q.powf(self.q_power) };
        }
        match self.pole {
            // tol = 0 and p = 1 in this precision: 0/0 in the logit gradient; the limit of w (p - e_y) is finite
            // but not expressible as a weight, so the weight is bounded by the smallest q a float can hold.
            Some(pole) => weight / (pole + q).max(f64::from(f32::MIN_POSITIVE)),
            None => weight,
        }
    }
}

/// The weight of all tokens of a document, as a formula of its log-ratio r to a base model:
/// `factor / (1 + exp(-slope (r - shift)))`.
///
/// r is the sum of `base - nll` over the document's targets (without a base model: of `-nll`), divided by its span. In
/// pairs r is that of a document less that of its partner, and every second document, the preferred one, has factor and
/// slope of the other sign.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DocumentFormula {
    /// The weight of a document that became far more probable.
    pub factor: f64,
    /// Rate at which the weight grows with r.
    pub slope: f64,
    /// The r at which the weight is half the factor.
    pub shift: f64,
    /// True if r is relative to a base model.
    pub against_base: bool,
    /// True if documents 2i and 2i + 1 are weighed against each other.
    pub paired: bool,
}

impl DocumentFormula {
    /// Returns the weight at log-ratio `ratio` of a document of a pair: `preferred` if it is the second one.
    pub fn weight(&self, ratio: f64, preferred: bool) -> f64 {
        let sign = if preferred { -1.0 } else { 1.0 };
        sign * self.factor / (1.0 + (-sign * self.slope * (ratio - self.shift)).exp())
    }
}

/// The source of the weights of a target-token loss; `S` is the backend's fp32 vector.
#[derive(Debug)]
pub enum TokenWeight<'a, S> {
    /// A formula of the token's own probability, evaluated in the row kernel.
    Formula(TokenFormula),
    /// One weight per row, made beforehand (sequence-level losses).
    PerRow(&'a S),
}

/// Hidden states of a mean squared error.
#[derive(Debug, Clone, Copy)]
pub struct MseArgs<'a, A, P> {
    /// N, rows.
    pub n: usize,
    /// C, width.
    pub c: usize,
    /// The packed documents.
    pub pack: &'a P,
    /// Hidden states, [N, C].
    pub x: &'a A,
}

/// Where rows of the residual stream are pulled.
#[derive(Debug)]
pub enum Toward<'a, A, S> {
    /// To the rows of another model [N, C].
    Rows(&'a A),
    /// To one vector, C numbers.
    Vector(&'a S),
}

/// A full-vocabulary loss, whose gradient reaches all logits; D = z - z_ref and q = softmax(z_ref).
///
/// All gradients are exactly 0 where the row has coefficient 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Matched {
    /// KL(uniform, p): value `-log V - mean log p`, gradient `p - 1/V`.
    Uniform,
    /// KL(q, p): value `sum q log(q/p)`, gradient `p - q`; both exactly 0 where D = 0.
    Kl,
    /// Quadratic KL: value `Var_q(D)`, gradient `q (D - E_q D)`, which is that of half the value.
    Qkl,
    /// KL(t, p) with t = softmax(z_ref - s e_y): value `sum t log(t/p)`, gradient `p - t`.
    Undial {
        /// s, what is taken off the logit of the target.
        strength: f64,
    },
    /// Each logit on its own: value `(2/b) mean log(1 + exp(b D))`, gradient `2 / (V (1 + exp(-b D)))`.
    LogitRatio {
        /// b, the inverse temperature.
        beta: f64,
    },
    /// KL of numbers taken for log-probabilities: value `-sum exp(z_ref) D`, gradient `-exp(z_ref)`.
    LogitKl,
    /// Distance of the largest logit to the mean: value `(max z - mean z)^2`, gradient
    /// `2 (max z - mean z) (e_argmax - 1/V)`, argmax the first of equals.
    Flatten,
}

impl Matched {
    /// Every loss, at parameters that its tests take.
    pub const ALL: [Self; 7] = [
        Self::Uniform,
        Self::Kl,
        Self::Qkl,
        Self::Undial { strength: 3.0 },
        Self::LogitRatio { beta: 0.7 },
        Self::LogitKl,
        Self::Flatten,
    ];

    /// Returns the name of its kernels, without what precision and cap add.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Kl => "kl",
            Self::Qkl => "qkl",
            Self::Undial { .. } => "undial",
            Self::LogitRatio { .. } => "logit_ratio",
            Self::LogitKl => "logit_kl",
            Self::Flatten => "flatten",
        }
    }

    /// Tells whether the loss compares with another model.
    pub fn compares(self) -> bool {
        !matches!(self, Self::Uniform | Self::Flatten)
    }

    /// Tells whether that model is the teacher, which penalties compare with, and not a base model that stays. Of these
    /// losses nobody monitors the NLL of the targets.
    pub fn reads_teacher(self) -> bool {
        matches!(self, Self::Kl | Self::Qkl | Self::LogitKl)
    }

    /// Returns the number that a row's formula takes; 0 for none.
    pub fn number(self) -> f64 {
        match self {
            Self::Undial { strength } => strength,
            Self::LogitRatio { beta } => beta,
            _ => 0.0,
        }
    }
}
