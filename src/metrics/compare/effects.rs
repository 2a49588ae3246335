//! Made-up effects of runs, for simulations.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A source of random effects with mean 0 and variance 1.
pub(crate) struct Effects {
    random: ChaCha8Rng,
    shape: Shape,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Shape {
    Normal,
    /// Student's t with 3 degrees of freedom.
    HeavyTails,
    /// One run in ten is slow.
    Outliers,
}

impl Effects {
    pub(crate) fn new(seed: u64, shape: Shape) -> Self {
        let random = ChaCha8Rng::seed_from_u64(seed);
        Self { random, shape }
    }

    fn uniform(&mut self) -> f64 {
        (self.random.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    pub(crate) fn one(&mut self) -> f64 {
        match self.shape {
            Shape::Normal => self.normal(),
            Shape::HeavyTails => {
                let squares: f64 = (0..3).map(|_| self.normal().powi(2)).sum();
                // The variance of t with 3 degrees of freedom is 3.
                self.normal() / (squares / 3.0).sqrt() / 3f64.sqrt()
            }
            Shape::Outliers => {
                let slow = if self.uniform() < 0.1 { 2.5 } else { 0.0 };
                // Mean and variance of the sum of both.
                (self.normal() * 0.6 + slow - 0.25) / (0.36f64 + 0.5625).sqrt()
            }
        }
    }

    /// Effects of runs that follow each other with autocorrelation `correlation`.
    pub(crate) fn series(&mut self, count: usize, correlation: f64) -> Vec<f64> {
        let innovation = (1.0 - correlation * correlation).sqrt();
        let mut last = self.one();
        let mut series = vec![last];
        for _ in 1..count {
            last = correlation * last + innovation * self.one();
            series.push(last);
        }
        series
    }
}
