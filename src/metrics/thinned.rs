//! Readings over time, thinned to a bounded number of points.

use crate::record::validity::SeriesRecord;

/// Points in a record.
const MOST_POINTS: usize = 2000;

/// Number of quantities of a point.
const QUANTITIES: usize = 7;

/// A reading; `None` where there is none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Readings {
    pub power_watts: Option<f64>,
    pub gpu_clock_mhz: Option<f64>,
    pub gpu_temperature_celsius: Option<f64>,
    pub gpu_memory_bytes: Option<f64>,
    pub others_share: Option<f64>,
    pub steal_share: Option<f64>,
    pub cpu_clock_mhz: Option<f64>,
}

/// Sums over the readings that a point stands for.
#[derive(Debug, Clone, Copy, Default)]
struct Point {
    ms: f64,
    readings: u32,
    sums: [f64; QUANTITIES],
    counts: [u32; QUANTITIES],
}

impl Point {
    fn merge(&mut self, other: &Self) {
        self.ms += other.ms;
        self.readings += other.readings;
        for index in 0..QUANTITIES {
            self.sums[index] += other.sums[index];
            self.counts[index] += other.counts[index];
        }
    }

    fn mean(&self, index: usize) -> Option<f64> {
        let count = self.counts[index];
        (count > 0).then(|| significant(self.sums[index] / f64::from(count)))
    }
}

/// Six digits are more than any sensor has.
fn significant(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

/// When all points are in use, neighbours are merged in pairs, and a point stands for twice as many readings.
#[derive(Debug, Clone)]
pub struct ThinnedSeries {
    points: Vec<Point>,
    /// Readings per point.
    stride: u32,
}

impl Default for ThinnedSeries {
    fn default() -> Self {
        Self {
            points: Vec::new(),
            stride: 1,
        }
    }
}

impl ThinnedSeries {
    pub fn add(&mut self, ms: f64, readings: &Readings) {
        let values = [
            readings.power_watts,
            readings.gpu_clock_mhz,
            readings.gpu_temperature_celsius,
            readings.gpu_memory_bytes,
            readings.others_share,
            readings.steal_share,
            readings.cpu_clock_mhz,
        ];
        let mut point = Point {
            ms,
            readings: 1,
            ..Point::default()
        };
        for (index, value) in values.iter().enumerate() {
            if let Some(value) = value.filter(|value| value.is_finite()) {
                point.sums[index] = value;
                point.counts[index] = 1;
            }
        }
        match self.points.last_mut() {
            Some(last) if last.readings < self.stride => last.merge(&point),
            _ => self.points.push(point),
        }
        if self.points.len() > MOST_POINTS {
            self.halve();
        }
    }

    fn halve(&mut self) {
        let pairs = self.points.chunks(2).map(|pair| {
            let mut point = pair[0];
            pair[1..].iter().for_each(|other| point.merge(other));
            point
        });
        self.points = pairs.collect();
        self.stride *= 2;
    }

    /// The points as columns. A quantity that was never read has none.
    pub fn record(&self) -> SeriesRecord {
        let column = |index: usize| -> Vec<Option<f64>> {
            match self.points.iter().any(|point| point.counts[index] > 0) {
                true => self.points.iter().map(|point| point.mean(index)).collect(),
                false => Vec::new(),
            }
        };
        let time = |point: &Point| (point.ms / f64::from(point.readings)).round();
        SeriesRecord {
            ms: self.points.iter().map(time).collect(),
            power_watts: column(0),
            gpu_clock_mhz: column(1),
            gpu_temperature_celsius: column(2),
            gpu_memory_bytes: column(3),
            others_share: column(4),
            steal_share: column(5),
            cpu_clock_mhz: column(6),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_night_fits_into_the_points() {
        let mut series = ThinnedSeries::default();
        for index in 0..100_000 {
            let watts = if index % 2 == 0 { 100.0 } else { 300.0 };
            let readings = Readings {
                power_watts: Some(watts),
                steal_share: (index < 50_000).then_some(0.25),
                ..Readings::default()
            };
            series.add(100.0 * f64::from(index), &readings);
        }
        let record = series.record();
        let points = record.ms.len();
        assert!(
            (MOST_POINTS / 2..=MOST_POINTS).contains(&points),
            "{points}"
        );
        assert!(record.ms.is_sorted());
        assert_eq!(record.power_watts.len(), points);
        assert!(
            record.power_watts[..points - 1]
                .iter()
                .all(|watts| *watts == Some(200.0))
        );
        assert_eq!(record.steal_share[0], Some(0.25));
        assert_eq!(record.steal_share[points - 1], None);
        assert_eq!(record.gpu_clock_mhz, []);
    }

    #[test]
    fn few_readings_are_kept_as_they_are() {
        let mut series = ThinnedSeries::default();
        series.add(
            12.4,
            &Readings {
                cpu_clock_mhz: Some(1234.5678),
                ..Readings::default()
            },
        );
        series.add(
            112.0,
            &Readings {
                cpu_clock_mhz: Some(f64::NAN),
                ..Readings::default()
            },
        );
        let record = series.record();
        assert_eq!(record.ms, [12.0, 112.0]);
        assert_eq!(record.cpu_clock_mhz, [Some(1234.57), None]);
    }
}
