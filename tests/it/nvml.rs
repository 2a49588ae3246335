//! What a run records of its GPU, on the simulated one and its `libnvidia-ml.so.1`, whose readings each test
//! writes into a file.

use std::path::{Path, PathBuf};

use crate::common::{Printed, Workspace, run};
use crate::live::Running;
use crate::simgpu::driver;
use crate::tiny_model;

/// A sound card, without the energy counter, that only this program uses.
const SOUND: &str = "driver_version=580.65.06
power_limit_mw=700000
max_clock_sm_mhz=1980
max_clock_memory_mhz=2619
memory_total=4294967296
memory_used=1073741824
mig_mode=0
persistence_mode=1
ecc_mode=1
power_mw=123400
clock_sm_mhz=1755
clock_memory_mhz=2619
temperature_c=61
utilization_gpu=87
utilization_memory=12
throttle_reasons=1
processes=self:1000
graphics_processes=none
";

/// A workspace with a tiny model, and the command `run` on the simulated GPU with these readings.
fn on(driver: &Path, readings: &str, arguments: &[&str]) -> (Workspace, assert_cmd::Command) {
    let workspace = tiny_model::with_readings(readings);
    let mut command = workspace.flowbench(arguments);
    command.envs(tiny_model::on_the_card(driver, &workspace, 1));
    (workspace, command)
}

/// A run of one flow, which must succeed: what it printed, and the record's part on the GPU.
#[track_caller]
fn record_of(driver: &Path, readings: &str) -> (Workspace, Printed, serde_json::Value) {
    let (workspace, mut command) = on(driver, readings, &["run"]);
    let printed = run(&mut command);
    assert_eq!(printed.code, 0, "{}", printed.err);
    let record = workspace.record();
    assert_eq!(crate::schema::problems_of_run(&record), [""; 0]);
    assert_eq!(record["engine"]["device"]["name"], "Simulated GPU");
    let gpu = record["gpu"].clone();
    (workspace, printed, gpu)
}

#[test]
fn a_run_records_its_card() {
    let Some(driver) = driver(&[]) else { return };
    // 2.5 J more at each call, which a thread makes meanwhile, too; 0x26: clocks set by the user, power limit, heat.
    let readings = SOUND
        .replace("throttle_reasons=1", "throttle_reasons=0x26")
        .replace("processes=self:1000", "processes=self:1000,4242:1073741824")
        + "energy_mj=1000000+2500\n";
    let (workspace, printed, gpu) = record_of(&driver, &readings);
    let reading = |energy: u64| {
        serde_json::json!({
            "memory_used_bytes": 1 << 30,
            "power_watts": 123.4,
            "energy_millijoules": energy,
            "clock_sm_mhz": 1755,
            "clock_memory_mhz": 2619,
            "temperature_celsius": 61,
            "utilization_percent": 87,
            "throttle": ["applications_clocks_setting", "sw_power_cap", "sw_thermal_slowdown"],
            "other_processes": [{"pid": 4242, "memory_bytes": 1 << 30}],
        })
    };
    let counter = |part: &str| gpu[part]["energy_millijoules"].as_u64().expect("known");
    let (from, to) = (counter("start"), counter("end"));
    assert!(from >= 1_000_000 && to > from, "{from} to {to}");
    assert_eq!(gpu["start"], reading(from));
    assert_eq!(gpu["end"], reading(to));
    let joules = (to - from) as f64 / 1e3;
    assert_eq!(gpu["energy_joules"], joules);
    assert!(gpu["seconds"].as_f64() > Some(0.0));
    assert_eq!(gpu["throttle"], gpu["end"]["throttle"]);
    assert_eq!(gpu["other_processes"], gpu["end"]["other_processes"]);
    assert_eq!(
        gpu["card"],
        serde_json::json!({
            "pci_bus_id": "0000:01:00.0",
            "uuid": "GPU-73696d75-6c61-7465-642d-6770752d3030",
            "driver": "580.65.06",
            "memory_bytes": 4_294_967_296_u64,
            "power_limit_watts": 700.0,
            "max_clock_sm_mhz": 1980,
            "max_clock_memory_mhz": 2619,
            "mig": "off",
            "persistence": true,
            "ecc": true,
        })
    );
    assert_eq!(gpu["missing"], serde_json::Value::Null);

    // 36 tokens: three steps of 12.
    let per_token = format!("{:.3} J per generated token", joules / 36.0);
    let line = format!(
        "[PROGRESS] GPU: {joules:.1} J, {per_token}; SM 1755 of 1980 MHz, memory 2619 of 2619 MHz; \
         61 °C; throttled by applications_clocks_setting, sw_power_cap, sw_thermal_slowdown; \
         shared with process 4242 (1.0 GiB)\n"
    );
    for line in [
        line.as_str(),
        "warning: The GPU was throttled: ",
        "(sw_power_cap, sw_thermal_slowdown)\n",
        "warning: Other processes used the GPU: ",
    ] {
        assert!(printed.err.contains(line), "{line}: {}", printed.err);
    }
    assert!(!printed.out.contains("GPU"), "{}", printed.out);

    let report = run(&mut workspace.flowbench(&["report"]));
    assert_eq!(report.code, 0, "{}", report.err);
    let folder = workspace.run_folder();
    let page = std::fs::read_to_string(folder.join("report.html")).expect("written");
    for shown in [
        "GPU energy",
        per_token.as_str(),
        "SM 1755 of 1980 MHz, memory 2619 of 2619 MHz",
        "GPU throttled by",
        "driver 580.65.06, power limit 700 W, MIG off, persistence on, ECC on",
        "process 4242 (1.0 GiB)",
    ] {
        assert!(page.contains(shown), "{shown}");
    }
}

#[test]
fn an_idle_card_without_an_energy_counter() {
    let Some(driver) = driver(&[]) else { return };
    let (_workspace, printed, gpu) = record_of(&driver, SOUND);
    let reason = "the requested operation is not available on the target device";
    assert_eq!(
        gpu["missing"],
        serde_json::json!({"energy_joules": reason, "energy_millijoules": reason})
    );
    assert_eq!(gpu["energy_joules"], serde_json::Value::Null);
    assert_eq!(gpu["end"]["power_watts"], 123.4);
    assert_eq!(gpu["throttle"], serde_json::json!([]), "idleness is none");
    assert_eq!(gpu["other_processes"], serde_json::json!([]));
    assert!(!printed.err.contains("GPU was"), "{}", printed.err);
    assert!(
        printed.err.contains("[PROGRESS] GPU: SM 1755"),
        "{}",
        printed.err
    );
}

#[test]
fn a_card_that_mig_splits() {
    let Some(driver) = driver(&[]) else { return };
    let readings = SOUND.replace("mig_mode=0", "mig_mode=1") + "energy_mj=1000+2500\n";
    let (_workspace, _, gpu) = record_of(&driver, &readings);
    assert_eq!(gpu["card"]["mig"], "on");
    for field in ["power_watts", "energy_millijoules", "utilization_percent"] {
        assert_eq!(gpu["end"][field], serde_json::Value::Null, "{field}");
        let reason = gpu["missing"][field].as_str().expect("a reason");
        assert!(reason.starts_with("MIG is on"), "{field}: {reason}");
    }
    assert_eq!(gpu["energy_joules"], serde_json::Value::Null);
    assert_eq!(
        gpu["missing"]["energy_joules"],
        gpu["missing"]["power_watts"]
    );
    assert_eq!(gpu["end"]["temperature_celsius"], 61);
}

#[test]
fn a_card_of_which_nothing_is_known() {
    let Some(driver) = driver(&[]) else { return };
    let (_workspace, _, gpu) = record_of(&driver, "mig_mode=!3\nprocesses=!15\n");
    assert_eq!(gpu["card"]["mig"], "unsupported");
    let missing = gpu["missing"].as_object().expect("reasons");
    let lost = "device fell off the bus or has otherwise become inacessible";
    assert_eq!(missing["other_processes"], lost);
    for part in ["card", "start", "end"] {
        for (field, value) in gpu[part].as_object().expect("fields") {
            // The version may come from the kernel module of this machine.
            let is_known = ["pci_bus_id", "uuid", "mig", "driver"].contains(&field.as_str());
            assert!(is_known || value.is_null(), "{field}: {value}");
            assert_eq!(value.is_null(), missing.contains_key(field), "{field}");
        }
    }
}

/// In a container, NVML may list the ids of the host.
#[test]
fn a_list_without_this_process_tells_nothing() {
    let Some(driver) = driver(&[]) else { return };
    let readings = SOUND.replace("processes=self:1000", "processes=4242:1000");
    let (_workspace, _, gpu) = record_of(&driver, &readings);
    assert_eq!(gpu["other_processes"], serde_json::json!([]));
    assert_eq!(gpu["end"]["other_processes"], serde_json::Value::Null);
    let reason = gpu["missing"]["other_processes"].as_str();
    assert!(reason.is_some_and(|reason| reason.contains("is not among the 1 that NVML lists")));
}

/// A driver's folder without NVML.
fn without_nvml(driver: &Path, workspace: &Workspace) -> PathBuf {
    let folder = workspace.file("driver");
    std::fs::create_dir(&folder).expect("writable");
    let library = "libcuda.so.1";
    std::fs::copy(driver.join(library), folder.join(library)).expect("writable");
    folder
}

#[test]
fn a_run_without_nvml_says_so_once() {
    let Some(driver) = driver(&[]) else { return };
    let (workspace, mut command) = on(&driver, SOUND, &["run"]);
    command.env("LD_LIBRARY_PATH", without_nvml(&driver, &workspace));
    let printed = run(&mut command);
    assert_eq!(printed.code, 0, "{}", printed.err);
    let gpu = &workspace.record()["gpu"];
    assert!(gpu["missing"]["nvml"].is_string(), "{gpu}");
    assert_eq!(
        gpu["missing"].as_object().map(serde_json::Map::len),
        Some(1)
    );
    assert_eq!(printed.err.matches("NVML").count(), 1, "{}", printed.err);
    assert!(
        printed.err.contains("\nwarning: NVML cannot be used: "),
        "{}",
        printed.err
    );
    assert!(!printed.err.contains("[PROGRESS] GPU"), "{}", printed.err);
}

#[test]
fn rounds_of_two_modes_have_one_energy() {
    let Some(driver) = driver(&[]) else { return };
    let (workspace, mut command) = on(&driver, &format!("{SOUND}energy_mj=0+2500\n"), &["run"]);
    let printed = run(command.env("MODE", "both"));
    assert_eq!(printed.code, 0, "{}", printed.err);
    let record = workspace.record();
    let joules = record["gpu"]["energy_joules"].as_f64().expect("known");
    let line = format!("[PROGRESS] GPU: {joules:.1} J; SM");
    assert!(printed.err.contains(&line), "{line}: {}", printed.err);
    // Each round has its part.
    let rounds = record["comparison"]["rounds"].as_array().expect("six");
    let of_rounds = rounds.iter().map(|round| round["energy_joules"].as_f64());
    let of_rounds: f64 = of_rounds.map(|joules| joules.expect("measured")).sum();
    let totals = &record["totals"]["energy"];
    assert_eq!(totals["source"], "nvml_energy_counter");
    assert!(
        of_rounds > 0.0 && of_rounds <= joules,
        "{of_rounds} of {joules}"
    );
    assert_eq!(
        totals["joules_per_token"],
        serde_json::Value::Null,
        "of which mode?"
    );
}

#[test]
fn doctor_warns_of_what_disturbs_a_run() {
    let Some(driver) = driver(&[]) else { return };
    let lines = |readings: &str, driver: &Path| {
        let (_workspace, mut command) = on(driver, readings, &["doctor"]);
        let printed = run(&mut command);
        let lines = printed.out.lines().filter(|line| line.contains("  nvml  "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let state = "ok    nvml       1.0 GiB of 4.0 GiB in use, 123 W, 61 °C, 87 % busy";
    // Not even the own process uses the card.
    let idle = SOUND.replace("processes=self:1000", "processes=none");
    assert_eq!(lines(&idle, &driver), [state]);
    let disturbed = SOUND
        .replace("processes=self:1000", "processes=4242:1073741824,4243:?")
        .replace("throttle_reasons=1", "throttle_reasons=0x6")
        .replace("mig_mode=0", "mig_mode=1");
    assert_eq!(
        lines(&disturbed, &driver),
        [
            "ok    nvml       1.0 GiB of 4.0 GiB in use, 61 °C",
            "warn  nvml       the GPU is throttled: sw_power_cap",
            "warn  nvml       other use of the GPU: processes 4242 (1.0 GiB), 4243",
            "warn  nvml       MIG is on: the card is split into instances",
        ]
    );
    let empty = Workspace::new();
    let missing = lines(SOUND, &without_nvml(&driver, &empty));
    assert_eq!(missing.len(), 1);
    assert!(
        missing[0].starts_with("warn  nvml       cannot be used: "),
        "{missing:?}"
    );
}

#[test]
fn a_running_run_shows_its_card() {
    let Some(driver) = driver(&[]) else { return };
    let workspace = Workspace::new();
    tiny_model::write(&workspace.file("tiny.gguf"));
    let readings = |power: &str| SOUND.replace("power_mw=123400", power) + "energy_mj=1000\n";
    workspace.write("nvml.txt", readings("power_mw=123400"));
    let mut command = workspace.child(&[]);
    command.envs(tiny_model::on_the_card(&driver, &workspace, 1));
    command.envs([("NUM_FLOWS", "1000"), ("STATS_ADDR", "127.0.0.1:0")]);
    let running = Running::of(&mut command);
    let device = |is_there: &dyn Fn(&serde_json::Value) -> bool| {
        loop {
            let text = running.get("/live.json");
            let live: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            if is_there(&live["device"]) {
                break live["device"].clone();
            }
        }
    };
    // Before the card is opened, all is unknown.
    let first = device(&|device| device["power_watts"] == 123.4);
    assert_eq!(
        first,
        serde_json::json!({
            "memory_used_bytes": 1 << 30,
            "memory_bytes": 4_294_967_296_u64,
            "power_watts": 123.4,
            "energy_millijoules": 1000,
            "clock_sm_mhz": 1755,
            "clock_memory_mhz": 2619,
            "temperature_celsius": 61,
            "utilization_percent": 87,
            "throttle": [],
            "other_processes": [],
        })
    );
    let metrics = running.get("/metrics");
    for line in [
        "\nflowbench_device_power_watts 123.4\n",
        "\nflowbench_device_clock_sm_hertz 1755000000\n",
        "\nflowbench_device_temperature_celsius 61\n",
        "\nflowbench_device_other_processes 0\n",
    ] {
        assert!(metrics.contains(line), "{line}{metrics}");
    }
    workspace.write("nvml.txt", readings("power_mw=80000"));
    device(&|device| device["power_watts"] == 80.0);
}
