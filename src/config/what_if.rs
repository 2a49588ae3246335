//! `--what-if`: the settings of a run that was not made.

use std::fmt;
use std::str::FromStr;

/// Settings under which a recorded run is replayed; `None` leaves them as they were.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct WhatIf {
    /// Flows in flight; at least 1.
    pub concurrency: Option<usize>,
    pub prefix_cache: Option<bool>,
    pub speculate: Option<bool>,
    /// Limit on the tokens of an answer; at least 1. It can only shorten the recorded answers.
    pub max_tokens: Option<usize>,
    /// How many times as fast generated tokens are computed.
    pub decode_speed: Option<f64>,
    /// How many times as fast prompts are computed.
    pub prefill_speed: Option<f64>,
    /// How many times as fast programs and answers are judged.
    pub evaluation_speed: Option<f64>,
}

/// The names, with an example of a value.
const NAMES: [(&str, &str); 7] = [
    ("concurrency", "8"),
    ("prefix_cache", "on"),
    ("speculate", "off"),
    ("max_tokens", "32"),
    ("decode_speed", "2"),
    ("prefill_speed", "1.5"),
    ("evaluation_speed", "2"),
];

/// Factors of speed beyond this say nothing about a machine.
const FASTEST: f64 = 1000.0;

impl FromStr for WhatIf {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = Self::default();
        for setting in text.split(',') {
            all.set(setting.trim())?;
        }
        Ok(all)
    }
}

impl WhatIf {
    fn set(&mut self, setting: &str) -> Result<(), String> {
        let Some((name, value)) = setting.split_once('=') else {
            return Err(format!(
                "expected NAME=VALUE with commas, such as concurrency=8,prefix_cache=on, not {setting:?}"
            ));
        };
        let set = match name {
            "concurrency" => once(&mut self.concurrency, count(value)),
            "prefix_cache" => once(&mut self.prefix_cache, switch(value)),
            "speculate" => once(&mut self.speculate, switch(value)),
            "max_tokens" => once(&mut self.max_tokens, count(value)),
            "decode_speed" => once(&mut self.decode_speed, speed(value)),
            "prefill_speed" => once(&mut self.prefill_speed, speed(value)),
            "evaluation_speed" => once(&mut self.evaluation_speed, speed(value)),
            _ => {
                let names: Vec<String> = (NAMES.iter())
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                return Err(format!(
                    "{name:?} cannot be predicted; settings: {}",
                    names.join(", ")
                ));
            }
        };
        set.map_err(|reason| format!("{name}: {reason}"))
    }
}

fn once<T>(place: &mut Option<T>, value: Result<T, String>) -> Result<(), String> {
    match place.replace(value?) {
        None => Ok(()),
        Some(_) => Err("given twice".to_owned()),
    }
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(format!("expected a whole number from 1 on, not {text:?}")),
    }
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" | "true" | "1" => Ok(true),
        "off" | "false" | "0" => Ok(false),
        _ => Err(format!("expected on or off, not {text:?}")),
    }
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(speed) if (1.0 / FASTEST..=FASTEST).contains(&speed) => Ok(speed),
        _ => Err(format!(
            "expected a factor from {} to {FASTEST}, where 2 is twice as fast, not {text:?}",
            1.0 / FASTEST
        )),
    }
}

impl fmt::Display for WhatIf {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let switch = |on: bool| if on { "on" } else { "off" }.to_owned();
        let parts = [
            ("concurrency", self.concurrency.map(|n| n.to_string())),
            ("prefix_cache", self.prefix_cache.map(switch)),
            ("speculate", self.speculate.map(switch)),
            ("max_tokens", self.max_tokens.map(|n| n.to_string())),
            ("decode_speed", self.decode_speed.map(|n| n.to_string())),
            ("prefill_speed", self.prefill_speed.map(|n| n.to_string())),
            (
                "evaluation_speed",
                self.evaluation_speed.map(|n| n.to_string()),
            ),
        ];
        let parts = parts
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name}={}", value?)));
        formatter.write_str(&parts.collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_printed_alike() {
        let text = "concurrency=8,prefix_cache=on,speculate=off,max_tokens=32,decode_speed=2,prefill_speed=1.5,evaluation_speed=0.5";
        let all: WhatIf = text.parse().unwrap();
        assert_eq!(all.to_string(), text);
        assert_eq!(all.concurrency, Some(8));
        assert_eq!(all.prefix_cache, Some(true));
        let spaced: WhatIf = "concurrency=2, prefix_cache=0".parse().unwrap();
        assert_eq!(spaced.to_string(), "concurrency=2,prefix_cache=off");
        // Each name is an example that can be given.
        for (name, value) in NAMES {
            let one: WhatIf = format!("{name}={value}").parse().unwrap();
            assert_eq!(one.to_string(), format!("{name}={value}"));
        }
    }

    #[test]
    fn what_cannot_be_predicted_is_told() {
        for (text, named) in [
            ("", "expected NAME=VALUE"),
            ("concurrency", "expected NAME=VALUE"),
            ("concurrency=8,", "expected NAME=VALUE"),
            ("concurrency=0", "concurrency: expected a whole number"),
            ("concurrency=-1", "concurrency: expected a whole number"),
            ("concurrency=2,concurrency=3", "concurrency: given twice"),
            ("prefix_cache=maybe", "prefix_cache: expected on or off"),
            ("decode_speed=0", "decode_speed: expected a factor"),
            ("decode_speed=NaN", "decode_speed: expected a factor"),
            ("decode_speed=1e9", "decode_speed: expected a factor"),
            (
                "model=x",
                "\"model\" cannot be predicted; settings: concurrency=8",
            ),
        ] {
            let told = text.parse::<WhatIf>().unwrap_err();
            assert!(told.contains(named), "{text}: {told}");
        }
    }
}
