#![no_main]

flowbench_fuzz::target!("template");
