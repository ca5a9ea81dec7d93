//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): a counter-based generator.
//! Every number is a pure function of (key, counter), so a mask drawn in the forward pass is drawn again in the
//! backward pass, on any device and in any order, without being stored.

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Four independent 32-bit numbers for one (counter, key).
#[inline]
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let low = u64::from(MULTIPLIER[0]) * u64::from(counter[0]);
        let high = u64::from(MULTIPLIER[1]) * u64::from(counter[2]);
        counter = [
            (high >> 32) as u32 ^ counter[1] ^ key[0],
            high as u32,
            (low >> 32) as u32 ^ counter[3] ^ key[1],
            low as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// The dropout mask of one input of one linear group in one micro-batch.
///
/// Counter = (token, feature / 4, layer · 16 + input, step · accumulation + micro); key = seed. An element is kept
/// when its 32-bit number is at least `p · 2³²`; kept elements are multiplied by `1 / (1 − p)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// The key of the generator
    pub seed: u64,
    /// layer · 16 + input
    pub dropout_id: u32,
    /// step · accumulation + micro
    pub dropout_step: u32,
    p: f32,
    threshold: u32,
    scale: f32,
}

impl Dropout {
    /// `p` in [0, 1); 0 keeps everything.
    pub fn new(seed: u64, dropout_id: u32, dropout_step: u32, p: f32) -> Self {
        assert!((0.0..1.0).contains(&p), "dropout must be in [0, 1), found {p}");
        let threshold = (f64::from(p) * 4_294_967_296.0).round().min(4_294_967_295.0) as u32;
        Self { seed, dropout_id, dropout_step, p, threshold, scale: (1.0 / (1.0 - f64::from(p))) as f32 }
    }

    /// The share that is dropped, in [0, 1).
    pub fn p(&self) -> f32 {
        self.p
    }

    /// True if nothing is dropped.
    pub fn is_identity(&self) -> bool {
        self.threshold == 0
    }

    /// The factors (0 or 1 / (1 − p)) of features `4 * quad .. 4 * quad + 4` of one token.
    #[inline]
    pub fn factors(&self, token: u32, quad: u32) -> [f32; 4] {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        philox4x32_10([token, quad, self.dropout_id, self.dropout_step], key)
            .map(|bits| if bits >= self.threshold { self.scale } else { 0.0 })
    }
}

/// A stream of numbers for host-side work (initialization, shuffling): Philox under a running counter.
#[derive(Clone, Debug)]
pub struct RngStream {
    key: [u32; 2],
    domain: [u32; 2],
    block: u64,
    buffer: [u32; 4],
    used: usize,
}

impl RngStream {
    /// Streams of different `domain`s never overlap.
    pub fn new(seed: u64, domain: u64) -> Self {
        Self {
            key: [seed as u32, (seed >> 32) as u32],
            domain: [domain as u32, (domain >> 32) as u32],
            block: 0,
            buffer: [0; 4],
            used: 4,
        }
    }

    /// The next 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            let counter = [self.block as u32, (self.block >> 32) as u32, self.domain[0], self.domain[1]];
            self.buffer = philox4x32_10(counter, self.key);
            self.block += 1;
            self.used = 0;
        }
        self.used += 1;
        self.buffer[self.used - 1]
    }

    /// Uniform in [0, 1) with 24 bits, exact in f32.
    pub fn uniform(&mut self) -> f32 {
        (self.next_u32() >> 8) as f32 / 16_777_216.0
    }

    /// Uniform in 0..n without bias (rejection); `n` > 0.
    pub fn below(&mut self, n: u32) -> u32 {
        let zone = u32::MAX - u32::MAX % n;
        loop {
            let x = self.next_u32();
            if x < zone {
                return x % n;
            }
        }
    }

    /// Fisher–Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u32 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the authors' Random123 distribution (kat_vectors, philox 4x32 10).
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox4x32_10([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        assert_eq!(
            philox4x32_10([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn dropout_keeps_its_share_and_its_mean() {
        let dropout = Dropout::new(7, 3, 1, 0.25);
        let factors: Vec<f32> = (0..4096).flat_map(|t| (0..4).flat_map(move |q| dropout.factors(t, q))).collect();
        let kept = factors.iter().filter(|&&f| f != 0.0).count() as f64 / factors.len() as f64;
        assert!((kept - 0.75).abs() < 0.01, "kept {kept}");
        assert!(factors.iter().all(|&f| f == 0.0 || f == 1.0 / 0.75));
        assert!(Dropout::new(7, 3, 1, 0.0).factors(5, 5) == [1.0; 4]);
    }
}
