#![no_main]

flowbench_fuzz::target!("script");
