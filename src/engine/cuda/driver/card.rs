//! Finds the card, and says why it cannot be used: each cause has its own text.

use std::ffi::{CStr, c_char, c_int};

use cudarc::driver::sys::{CUdevice, CUdevice_attribute as Attribute};

use super::super::super::device::info::DeviceInfo;
use super::super::super::device::nvml;
use super::error::GpuError;
use super::library::{Driver, Missing};
use crate::error::{Error, Result};
use crate::units::plural;

/// The lowest compute capability that the kernels are compiled for (Turing).
pub(crate) const MINIMUM_CAPABILITY: (u32, u32) = (7, 5);

/// CUDA version that a driver must implement to compile the kernels' PTX (ISA 8.1).
const MINIMUM_CUDA: i32 = 12_010;

/// The first driver branch with [`MINIMUM_CUDA`].
pub(crate) const MINIMUM_DRIVER: &str = "530";

const CPU: &str = "DEVICE=cpu runs without a GPU";

/// What the driver says of a card, without a context on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Card {
    pub(crate) name: String,
    /// Compute capability: major, minor.
    pub(crate) capability: (u32, u32),
    pub(crate) multiprocessors: u32,
    pub(crate) memory_bytes: usize,
    /// `0000:65:00.0`.
    pub(crate) pci_bus_id: String,
    /// Number of cards that are visible to this process.
    pub(crate) visible: u32,
    /// CUDA version that the driver implements: `12_010` is 12.1.
    pub(crate) cuda: i32,
}

/// A CUDA version as text: `12_010` is `12.1`.
pub(crate) fn cuda_version(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// The CUDA version that a driver must implement.
pub(crate) fn minimum_cuda() -> String {
    cuda_version(MINIMUM_CUDA)
}

impl Card {
    /// Asks the driver for the card, without allocating anything on it.
    ///
    /// # Errors
    /// Exit code 3, with a hint: no driver, a driver that is too old or lacks a function, no visible
    /// card, or a card that is too old.
    pub(crate) fn find() -> Result<Self> {
        find().map(|(card, _, _)| card)
    }

    /// The card as it is recorded in a run.
    pub(super) fn info(&self) -> DeviceInfo {
        let (major, minor) = self.capability;
        DeviceInfo {
            kind: "cuda".to_owned(),
            name: self.name.clone(),
            compute_capability: Some(format!("{major}.{minor}")),
            driver: nvml::driver_version(),
            memory_bytes: Some(self.memory_bytes as u64),
        }
    }

    /// The error if no context can be made on the card.
    pub(super) fn refused(&self, error: GpuError) -> Error {
        let hint = match error.code() {
            // CUDA_ERROR_OUT_OF_MEMORY
            2 => format!(
                "other programs use its memory (`nvidia-smi` lists them): stop them, or name another card in CUDA_VISIBLE_DEVICES; {CPU}"
            ),
            // CUDA_ERROR_DEVICE_UNAVAILABLE
            46 => format!(
                "another process may hold it for itself (`nvidia-smi -q -d COMPUTE` shows the compute mode); {CPU}"
            ),
            _ => format!("`nvidia-smi` shows whether the card responds; {CPU}"),
        };
        Error::preflight(format!("failed to open {}", self.name))
            .caused_by(error)
            .hint(hint)
    }
}

/// The card, the driver and the driver's number of the card.
pub(super) fn find() -> Result<(Card, &'static Driver, CUdevice)> {
    let driver = Driver::get().map_err(unusable)?;
    let cuda = version(driver).map_err(|error| not_initialized(error, None))?;
    check_version(cuda)?;
    // SAFETY: has no requirements.
    unsafe { driver.cuInit(0) }.map_err(|error| match error.code() {
        // CUDA_ERROR_NO_DEVICE
        100 => invisible(),
        _ => not_initialized(error, Some(cuda)),
    })?;
    let found = query(driver, cuda).map_err(|error| {
        Error::preflight("failed to query the GPU")
            .caused_by(error)
            .hint(format!(
                "`nvidia-smi` shows whether the card responds; {CPU}"
            ))
    })?;
    let Some((card, device)) = found else {
        return Err(invisible());
    };
    check_capability(&card.name, card.capability)?;
    Ok((card, driver, device))
}

fn version(driver: &Driver) -> Result<i32, GpuError> {
    let mut version = 0;
    // SAFETY: the driver writes a number.
    unsafe { driver.cuDriverGetVersion(&raw mut version)? };
    Ok(version)
}

/// Device 0 of an initialised driver; `None` if there is none.
fn query(driver: &Driver, cuda: i32) -> Result<Option<(Card, CUdevice)>, GpuError> {
    let mut visible = 0;
    // SAFETY: the driver writes a number.
    unsafe { driver.cuDeviceGetCount(&raw mut visible)? };
    if visible < 1 {
        return Ok(None);
    }
    let mut device = 0;
    // SAFETY: the driver writes a number.
    unsafe { driver.cuDeviceGet(&raw mut device, 0)? };
    let attribute = |attribute| {
        let mut value = 0;
        // SAFETY: the driver writes a number.
        unsafe { driver.cuDeviceGetAttribute(&raw mut value, attribute, device)? };
        Ok(u32::try_from(value).unwrap_or(0))
    };
    let mut memory_bytes = 0;
    // SAFETY: the driver writes a size.
    unsafe { driver.cuDeviceTotalMem_v2(&raw mut memory_bytes, device)? };
    let card = Card {
        // SAFETY: the driver writes at most `length` bytes, with a zero at the end.
        name: text(|text, length| unsafe { driver.cuDeviceGetName(text, length, device) })?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory_bytes,
        // SAFETY: as above.
        pci_bus_id: text(|text, length| unsafe {
            driver.cuDeviceGetPCIBusId(text, length, device)
        })?,
        visible: visible.unsigned_abs(),
        cuda,
    };
    Ok(Some((card, device)))
}

/// A text that the driver writes.
fn text(
    write: impl FnOnce(*mut c_char, c_int) -> Result<(), GpuError>,
) -> Result<String, GpuError> {
    let mut bytes = [0u8; 256];
    // One byte stays zero, whatever is written.
    write(bytes.as_mut_ptr().cast(), 255)?;
    let text = CStr::from_bytes_until_nul(&bytes).unwrap_or_default();
    Ok(text.to_string_lossy().into_owned())
}

/// How to get a driver that is new enough.
fn update() -> String {
    format!(
        "install the NVIDIA driver {MINIMUM_DRIVER} or later (CUDA {}); {CPU}",
        minimum_cuda()
    )
}

/// The error if the driver cannot be called.
fn unusable(missing: &Missing) -> Error {
    match missing {
        Missing::Library(reason) => {
            let error = match reason.contains("No such file") {
                true => Error::preflight("no NVIDIA driver is installed (no libcuda.so.1)"),
                false => {
                    Error::preflight("the NVIDIA driver cannot be loaded").caused_by(reason.clone())
                }
            };
            error.hint(format!(
                "{}. In a container, the driver is the host's: start it with `--gpus all`",
                update()
            ))
        }
        Missing::Function { name, version } => {
            let implements = match version {
                Some(version) => format!("implements CUDA {}", cuda_version(*version)),
                None => "does not say which version of CUDA it implements".to_owned(),
            };
            let error = Error::preflight(format!(
                "the NVIDIA driver lacks the function {name}: it {implements}, and CUDA {} or later is needed",
                minimum_cuda()
            ));
            match version {
                Some(MINIMUM_CUDA..) => error.hint(format!(
                    "libcuda.so.1 seems to be damaged or something else: install the NVIDIA driver again; {CPU}"
                )),
                _ => error.hint(update()),
            }
        }
    }
}

/// # Errors
/// If a driver that implements this version cannot compile the kernels.
fn check_version(cuda: i32) -> Result<()> {
    if cuda >= MINIMUM_CUDA {
        return Ok(());
    }
    Err(Error::preflight(format!(
        "the NVIDIA driver is too old: it implements CUDA {}, and the kernels need CUDA {}",
        cuda_version(cuda),
        minimum_cuda()
    ))
    .hint(update()))
}

/// # Errors
/// If there are no kernels for a card of this capability.
fn check_capability(name: &str, capability: (u32, u32)) -> Result<()> {
    if capability >= MINIMUM_CAPABILITY {
        return Ok(());
    }
    let ((major, minor), (least, most)) = (capability, MINIMUM_CAPABILITY);
    Err(Error::preflight(format!(
        "{name} is too old: it has compute capability {major}.{minor}, and the kernels need {least}.{most}"
    ))
    .hint(format!(
        "use a card of the Turing generation or later (CUDA_VISIBLE_DEVICES names it); {CPU}"
    )))
}

/// The error if the driver does not start.
fn not_initialized(error: GpuError, cuda: Option<i32>) -> Error {
    let hint = match error.code() {
        // CUDA_ERROR_STUB_LIBRARY
        34 => format!(
            "libcuda.so.1 is the CUDA toolkit's stub, not a driver: take its folder off LD_LIBRARY_PATH; {CPU}"
        ),
        // CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
        803 => format!(
            "the kernel module and libcuda.so.1 are of different versions: reboot, or install the driver again; {CPU}"
        ),
        _ => format!(
            "`nvidia-smi` shows whether the driver responds (after an update, a reboot may be needed); {CPU}"
        ),
    };
    let version = cuda.map_or_else(String::new, |cuda| {
        format!(" (CUDA {})", cuda_version(cuda))
    });
    Error::preflight(format!("the NVIDIA driver{version} does not start"))
        .caused_by(error)
        .hint(hint)
}

fn invisible() -> Error {
    let variable = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    no_card(variable.as_deref(), nvml::cards())
}

/// The error if no card is visible. `cards`: number in this machine, if it is known.
fn no_card(variable: Option<&str>, cards: Option<u32>) -> Error {
    let machine = match cards {
        Some(cards) => format!(", and the machine has {}", plural(cards as usize, "GPU")),
        None => String::new(),
    };
    let message = match variable {
        None => format!("the NVIDIA driver shows no GPU{machine}"),
        Some("") => format!("no GPU is visible: CUDA_VISIBLE_DEVICES is empty{machine}"),
        Some(value) => format!("no GPU is visible: CUDA_VISIBLE_DEVICES is `{value}`{machine}"),
    };
    Error::preflight(message).hint(format!(
        "set CUDA_VISIBLE_DEVICES to the index of a card that `nvidia-smi` lists, or leave it unset for card 0; {CPU}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;

    fn report(error: &Error) -> String {
        assert_eq!(error.exit(), Exit::Preflight);
        assert!(error.hint_text().is_some_and(|hint| hint.contains(CPU)));
        error.report()
    }

    #[test]
    fn each_cause_has_its_own_text_with_both_numbers() {
        let missing = |name, version| report(&unusable(&Missing::Function { name, version }));
        let library = |reason: &str| report(&unusable(&Missing::Library(reason.to_owned())));
        assert!(
            library("libcuda.so.1: cannot open: No such file or directory").starts_with(
                "error: no NVIDIA driver is installed (no libcuda.so.1)\nhint: install the NVIDIA driver 530"
            )
        );
        assert!(library("libcuda.so.1: wrong ELF class").starts_with(
            "error: the NVIDIA driver cannot be loaded\n  caused by: libcuda.so.1: wrong ELF class\n"
        ));
        assert!(missing("cuGraphLaunch", Some(11_080)).starts_with(
            "error: the NVIDIA driver lacks the function cuGraphLaunch: it implements CUDA 11.8, and CUDA 12.1 or later is needed\nhint: install the NVIDIA driver 530"
        ));
        assert!(missing("cuInit", None).contains("it does not say which version"));
        assert!(missing("cuInit", Some(12_080)).contains("hint: libcuda.so.1 seems to be damaged"));
        let old = check_version(12_000).expect_err("too old");
        assert!(report(&old).starts_with(
            "error: the NVIDIA driver is too old: it implements CUDA 12.0, and the kernels need CUDA 12.1\n"
        ));
        assert!(check_version(12_010).is_ok() && check_version(13_000).is_ok());
        let old = check_capability("Tesla V100", (7, 0)).expect_err("too old");
        assert!(report(&old).starts_with(
            "error: Tesla V100 is too old: it has compute capability 7.0, and the kernels need 7.5\n"
        ));
        assert!(check_capability("T4", (7, 5)).is_ok());
        assert!(check_capability("B200", (10, 0)).is_ok());
    }

    #[test]
    fn no_visible_card_names_the_variable_and_the_cards() {
        let text = |variable, cards| report(&no_card(variable, cards));
        assert!(text(Some(""), Some(2)).starts_with(
            "error: no GPU is visible: CUDA_VISIBLE_DEVICES is empty, and the machine has 2 GPUs\n"
        ));
        assert!(text(Some("7"), Some(1)).starts_with(
            "error: no GPU is visible: CUDA_VISIBLE_DEVICES is `7`, and the machine has 1 GPU\n"
        ));
        assert!(text(None, None).starts_with("error: the NVIDIA driver shows no GPU\n"));
    }

    #[test]
    fn a_driver_that_does_not_start_is_told_apart() {
        let hint = |code| {
            let error = not_initialized(GpuError::new("cuInit", code, None, None), Some(12_040));
            report(&error)
        };
        assert!(hint(34).contains("hint: libcuda.so.1 is the CUDA toolkit's stub"));
        assert!(hint(803).contains("of different versions: reboot"));
        assert!(hint(999).starts_with(
            "error: the NVIDIA driver (CUDA 12.4) does not start\n  caused by: cuInit failed: CUDA error 999"
        ));
    }
}
