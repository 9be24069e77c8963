//! Requests as they come by chance, with the wander of real services: the same from the same seed.

#![allow(unreachable_pub, dead_code, reason = "each test takes what it needs")]

/// Chance from a seed (Steele, Lea & Flood, Fast splittable pseudorandom number generators, OOPSLA 2014).
pub struct Chance(pub u64);

impl Chance {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn unit(&mut self) -> f64 {
        (f64::from(u32::try_from(self.bits() >> 32).unwrap()) + 0.5) / 4_294_967_296.0
    }

    /// Box & Muller 1958.
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Knuth's product of uniforms.
    pub fn poisson(&mut self, mean: f64) -> u32 {
        let (limit, mut product, mut n) = ((-mean).exp(), self.unit(), 0);
        while product > limit {
            product *= self.unit();
            n += 1;
        }
        n
    }
}

/// How the log level of a service wanders: 0.055 from day to day with a time constant of 36 h, 0.045 from hour to hour with one of 1.5 h (Ornstein-Uhlenbeck).
pub struct Wander {
    slow: f64,
    fast: f64,
}

impl Wander {
    pub fn new(chance: &mut Chance) -> Self {
        Self { slow: 0.055 * chance.normal(), fast: 0.045 * chance.normal() }
    }

    /// The log level of the next quarter of an hour.
    pub fn next_quarter(&mut self, chance: &mut Chance) -> f64 {
        let (keep_slow, keep_fast) = ((-0.25_f64 / 36.0).exp(), (-0.25_f64 / 1.5).exp());
        self.slow = keep_slow * self.slow + 0.055 * (1.0 - keep_slow * keep_slow).sqrt() * chance.normal();
        self.fast = keep_fast * self.fast + 0.045 * (1.0 - keep_fast * keep_fast).sqrt() * chance.normal();
        self.slow + self.fast
    }
}
