//! Tests with memory of this process. A kernel or user without the right to userfaultfd skips them.

use super::*;
use rustix::mm::{MapFlags, ProtFlags, UserfaultfdFlags, mmap_anonymous, userfaultfd};

const API: Opcode = 0xc018_aa3f;
const REGISTER: Opcode = 0xc020_aa00;
/// The version of the interface, and the mode in which missing pages are waited for.
const VERSION: u64 = 0xaa;
const MISSING: u64 = 1;

#[repr(C)]
struct ApiRequest {
    version: u64,
    features: u64,
    requests: u64,
}

#[repr(C)]
struct RegisterRequest {
    at: u64,
    bytes: u64,
    mode: u64,
    requests: u64,
}

/// Memory of this process, which stays mapped and is filled by its [`Userfault`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiting {
    pub at: u64,
    pub bytes: usize,
}

impl Waiting {
    /// Makes such memory; `None` where the environment does not allow it.
    pub(crate) fn new(bytes: usize) -> Option<(Self, OwnedFd)> {
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        // SAFETY: the descriptor is used for the mapping below alone.
        let faults = unsafe { userfaultfd(flags) }.ok()?;
        let (prot, kind) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping, at an address that the kernel chooses; nothing refers to it.
        let at = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, prot, kind) }.ok()? as u64;
        let mut api = ApiRequest { version: VERSION, features: 0, requests: 0 };
        let length = bytes as u64;
        let mut register = RegisterRequest { at, bytes: length, mode: MISSING, requests: 0 };
        // SAFETY: the kernel reads and writes the requests alone, which live through the calls.
        unsafe {
            ioctl(&faults, Updater::<API, _>::new(&mut api)).ok()?;
            ioctl(&faults, Updater::<REGISTER, _>::new(&mut register)).ok()?;
        }
        Some((Self { at, bytes }, faults))
    }

    /// Reads the first byte of a page; waits while the page is missing.
    pub(crate) fn read(self, page: usize) -> u8 {
        let at = usize::try_from(self.at).unwrap() + page * 4096;
        assert!(page * 4096 < self.bytes);
        // SAFETY: the address is in a mapping that stays.
        unsafe { std::ptr::with_exposed_provenance::<u8>(at).read_volatile() }
    }
}

#[test]
fn other_descriptor_is_no_userfaultfd() {
    let error = Userfault::new(tempfile::tempfile().unwrap().into()).unwrap_err();
    assert!(error.to_string().contains("no userfaultfd"), "{error}");
}

#[test]
fn range_is_filled_part_by_part_around_pages_that_are_there() {
    let (mut asked, mut busy) = (Vec::new(), 3);
    each_part(8 * PAGE, 6 * PAGE, |at, bytes| {
        asked.push((at / PAGE, bytes / PAGE));
        match at / PAGE {
            8 => (Err(Errno::AGAIN), 4096 * 2),
            10 if busy > 0 => {
                busy -= 1;
                (Err(Errno::AGAIN), -11)
            }
            10 => (Err(Errno::EXIST), 0),
            _ => (Ok(()), 4096),
        }
    })
    .unwrap();
    assert_eq!(asked, [(8, 6), (10, 4), (10, 4), (10, 4), (10, 4), (11, 3)]);
    let gone = each_part(0, PAGE, |_, _| (Err(Errno::SRCH), 0)).unwrap_err();
    assert_eq!(gone.raw_os_error(), Some(Errno::SRCH.raw_os_error()));
    let mut tries = 0;
    let never = each_part(0, PAGE, |_, _| {
        tries += 1;
        (Err(Errno::AGAIN), 0)
    });
    assert!(never.is_err());
    assert_eq!(tries, REPEATS + 1);
}

#[test]
fn touched_page_waits_until_it_is_filled() {
    let Some((memory, faults)) = Waiting::new(8 * 4096) else { return };
    let faults = Userfault::new(faults).unwrap();
    assert_eq!(faults.touched().unwrap(), None);
    let reader = std::thread::spawn(move || memory.read(5));
    let at = loop {
        match faults.touched().unwrap() {
            Some(at) => break at,
            None => std::thread::yield_now(),
        }
    };
    assert_eq!(at / PAGE, memory.at / PAGE + 5);
    faults.copy(memory.at + 5 * PAGE, &[7; 4096]).unwrap();
    faults.wake(memory.at + 5 * PAGE, PAGE).unwrap();
    assert_eq!(reader.join().unwrap(), 7);
    // A page that is there stays, and its neighbours are filled.
    faults.copy(memory.at + 4 * PAGE, &[9; 3 * 4096]).unwrap();
    assert_eq!([4, 5, 6].map(|page| memory.read(page)), [9, 7, 9]);
    faults.zero(memory.at, 2 * PAGE).unwrap();
    faults.release(memory.at, 8 * PAGE).unwrap();
    assert_eq!([0, 1, 2, 3, 7].map(|page| memory.read(page)), [0; 5]);
    // The process is found with the same descriptor.
    let own = i32::try_from(std::process::id()).unwrap();
    let started = super::super::start_time(own).unwrap();
    assert!(Userfault::of_process(own, started).is_ok());
}
