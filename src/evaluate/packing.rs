//! The circle packing task: 26 circles in the unit square, maximizing the sum of their radii.
//!
//! A program returns `(centers, radii, sum)`. Centers and radii are checked and summed here; the sum that
//! the program reports is ignored.

use serde_json::Value;

pub const CIRCLES: usize = 26;

/// By how much a circle may leave the square or overlap another (in units of the square's side).
pub const TOLERANCE: f64 = 1e-6;

/// Accepted function names, in order of preference.
pub const ENTRY_POINTS: [&str; 2] = ["construct_packing", "run_packing"];

/// The sum of the radii of a valid packing, or the first error found.
///
/// `returned` is `[centers, radii, ...]`, `centers` of shape `[26, 2]` and `radii` of shape `[26]`.
/// Anything after the radii is ignored.
pub fn score(returned: &Value) -> Result<f64, String> {
    let parts = returned.as_array().filter(|parts| parts.len() >= 2);
    let Some([centers, radii, ..]) = parts.map(Vec::as_slice) else {
        return Err("the program must return (centers, radii, sum)".to_owned());
    };
    let circles = circles(centers, radii)?;
    for (index, circle) in circles.iter().enumerate() {
        circle
            .inside()
            .map_err(|why| format!("circle {index} {why}"))?;
        for (other_index, other) in circles[..index].iter().enumerate() {
            let overlap = circle.radius + other.radius - circle.distance(other);
            if overlap > TOLERANCE {
                return Err(format!(
                    "circles {other_index} and {index} overlap by {overlap:.3e}"
                ));
            }
        }
    }
    // `fold` from 0.0, because `sum` returns -0.0 if all radii are negative zeros.
    Ok(circles.iter().fold(0.0, |sum, circle| sum + circle.radius))
}

#[derive(Debug, Clone, Copy)]
struct Circle {
    x: f64,
    y: f64,
    radius: f64,
}

impl Circle {
    fn inside(&self) -> Result<(), String> {
        if self.radius < 0.0 {
            return Err(format!("has a negative radius, {}", self.radius));
        }
        let room = self.x.min(1.0 - self.x).min(self.y).min(1.0 - self.y);
        let outside = self.radius - room;
        if outside > TOLERANCE {
            return Err(format!("leaves the unit square by {outside:.3e}"));
        }
        Ok(())
    }

    fn distance(&self, other: &Self) -> f64 {
        (self.x - other.x).hypot(self.y - other.y)
    }
}

fn circles(centers: &Value, radii: &Value) -> Result<Vec<Circle>, String> {
    let centers = list("centers", centers)?;
    let radii = list("radii", radii)?;
    let pairs = centers.iter().zip(radii).enumerate();
    pairs
        .map(|(index, (center, radius))| {
            let Some([x, y]) = center.as_array().map(Vec::as_slice) else {
                return Err(format!("center {index} is not a pair of numbers"));
            };
            let place = format!("center {index}");
            Ok(Circle {
                x: finite(&place, x)?,
                y: finite(&place, y)?,
                radius: finite(&format!("radius {index}"), radius)?,
            })
        })
        .collect()
}

fn list<'a>(name: &str, value: &'a Value) -> Result<&'a [Value], String> {
    let Some(list) = value.as_array() else {
        return Err(format!("{name} is not a list"));
    };
    if list.len() != CIRCLES {
        let length = list.len();
        return Err(format!("{name} has {length} entries, not {CIRCLES}"));
    }
    Ok(list)
}

fn finite(place: &str, value: &Value) -> Result<f64, String> {
    let number = value.as_f64().filter(|number| number.is_finite());
    number.ok_or_else(|| format!("{place} is not a finite number"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// 26 cells of a 6 × 5 grid, each with a circle of `radius` at its center.
    fn grid(radius: f64) -> (Vec<[f64; 2]>, Vec<f64>) {
        let centers = (0..CIRCLES).map(|index| {
            let (row, column) = (index / 6, index % 6);
            [(column as f64 + 0.5) / 6.0, (row as f64 + 0.5) / 6.0]
        });
        (centers.collect(), vec![radius; CIRCLES])
    }

    fn scored(centers: &[[f64; 2]], radii: &[f64]) -> Result<f64, String> {
        score(&json!([centers, radii, 0.0]))
    }

    #[test]
    fn the_score_of_a_grid_is_the_sum_of_its_radii() {
        let (centers, radii) = grid(1.0 / 12.0);
        let sum = scored(&centers, &radii).unwrap();
        assert!((sum - 26.0 / 12.0).abs() < 1e-12, "{sum}");
    }

    #[test]
    fn the_reported_sum_is_ignored() {
        let (centers, radii) = grid(0.01);
        for sum in [json!(99.0), json!("lots"), json!(null)] {
            let score = score(&json!([centers, radii, sum])).unwrap();
            assert!((score - 0.26).abs() < 1e-12, "{score}");
        }
    }

    #[test]
    fn a_score_is_never_negative_zero() {
        let (centers, radii) = grid(-0.0);
        let score = scored(&centers, &radii).unwrap();
        assert!(score == 0.0 && score.is_sign_positive(), "{score}");
    }

    #[test]
    fn the_tolerance_is_one_millionth() {
        let (centers, mut radii) = grid(1.0 / 12.0);
        radii[0] += 0.9e-6;
        scored(&centers, &radii).unwrap();
        radii[0] += 0.2e-6;
        let why = scored(&centers, &radii).unwrap_err();
        assert!(why.contains("circle 0 leaves the unit square"), "{why}");
    }

    #[test]
    fn overlapping_circles_are_named() {
        let (mut centers, radii) = grid(1.0 / 12.0);
        centers[8] = centers[7];
        let why = scored(&centers, &radii).unwrap_err();
        assert!(
            why.starts_with("circles 7 and 8 overlap by 1.667e-1"),
            "{why}"
        );
    }

    #[test]
    fn each_malformed_return_value_has_its_own_error() {
        let (centers, radii) = grid(0.01);
        let cases = [
            (json!(null), "must return"),
            (json!({"centers": centers}), "must return"),
            (json!([centers]), "must return"),
            (json!([centers, 3]), "radii is not a list"),
            (json!([centers, radii[1..]]), "radii has 25 entries"),
            (json!([[], radii]), "centers has 0 entries"),
            (json!([vec![[0.5]; 26], radii]), "center 0 is not a pair"),
            (json!([centers, vec!["1"; 26]]), "radius 0 is not a finite"),
            (
                json!([centers, vec![None::<f64>; 26]]),
                "radius 0 is not a finite",
            ),
            (
                json!([centers, vec![-0.1; 26]]),
                "circle 0 has a negative radius",
            ),
        ];
        for (returned, expected) in cases {
            let why = score(&returned).unwrap_err();
            assert!(why.contains(expected), "{why}");
        }
    }

    proptest! {
        /// 26 circles can cover at most the area of the square, so the sum of their radii is at most
        /// sqrt(26 / pi) by the Cauchy-Schwarz inequality.
        #[test]
        fn no_accepted_packing_beats_the_area_bound(
            centers in prop::collection::vec([0.0..1.0, 0.0..1.0], CIRCLES),
            radii in prop::collection::vec(-0.01..0.05, CIRCLES),
        ) {
            if let Ok(sum) = scored(&centers, &radii) {
                prop_assert!(sum <= (CIRCLES as f64 / std::f64::consts::PI).sqrt() + 1e-3);
                prop_assert!(radii.iter().all(|radius| *radius >= 0.0));
            }
        }

        #[test]
        fn two_equal_circles_with_one_center_are_never_accepted(
            place in 0..CIRCLES - 1, radius in 1e-3..1.0 / 12.0,
        ) {
            let (mut centers, radii) = grid(radius);
            centers[place] = centers[place + 1];
            prop_assert!(scored(&centers, &radii).is_err());
        }
    }
}
