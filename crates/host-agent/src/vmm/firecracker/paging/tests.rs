//! Tests of the pager with memory of this process in place of Firecracker's. A kernel or user
//! without the right to userfaultfd skips those.

use super::*;
use crate::snapshot::layer::tests::layer;
use crate::snapshot::memory;
use crate::sys::userfault::tests::Waiting;
use crate::vmm::firecracker::jail::Programs;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::IoSlice;
use std::os::fd::AsFd;
use std::os::unix::net;

const BLOCKS: usize = 8;
const PAGES: usize = BLOCKS * BLOCK_PAGES;
const BYTES: u64 = PAGES as u64 * PAGE as u64;

/// Links a memory of an image and two layers into the folder `own`. Returns the first byte of each
/// of its pages.
fn link(dir: &Path, own: &Path) -> Vec<u8> {
    let lowest = [(0_u64, 1_u8), (70, 2), (71, 3), (300, 4), (511, 5)];
    let (first, second) = ([(70, 0), (72, 6), (301, 7)], [(128, 9), (301, 8)]);
    let mut pages = vec![0_u8; PAGES];
    for (number, fill) in lowest.iter().chain(&first).chain(&second) {
        pages[usize::try_from(*number).unwrap()] = *fill;
    }
    let image = layer(&dir.join("lowest"), &lowest);
    let image = memory::image_at(&dir.join("image"), &[image], BYTES).unwrap();
    let above = [layer(&dir.join("first"), &first), layer(&dir.join("second"), &second)];
    Base::link(image.path.as_ref().unwrap(), &above, own).unwrap();
    pages
}

/// Returns the regions of a machine whose memory has a gap, as one beyond 3 GiB has.
fn regions(memory: Waiting) -> Vec<Region> {
    let half = BYTES / 2;
    let at = |base_host_virt_addr, offset| Region { base_host_virt_addr, size: half, offset };
    Vec::from([at(memory.at, 0), at(memory.at + half, half)])
}

fn bytes_of(memory: Waiting) -> Vec<u8> {
    (0..PAGES).map(|page| memory.read(page)).collect()
}

fn list(own: &Path) -> u64 {
    fs::metadata(own.join(LIST)).unwrap().len()
}

#[test]
fn only_regions_that_cover_the_memory_in_order_are_accepted() {
    let told = |regions: &[(u64, u64, u64)]| {
        let one = |(at, size, offset): &(u64, u64, u64)| {
            serde_json::json!({
                "base_host_virt_addr": at, "size": size, "offset": offset,
                "page_size": 4096, "page_size_kib": 4096,
            })
        };
        let text = serde_json::Value::from_iter(regions.iter().map(one)).to_string();
        read_regions(text.as_bytes(), BYTES).is_ok()
    };
    let (half, at) = (BYTES / 2, 1_u64 << 40);
    assert!(told(&[(at, BYTES, 0)]));
    assert!(told(&[(at, half, 0), (at << 1, half, half)]));
    for wrong in [
        &[][..],
        &[(at, half, 0)],
        &[(at, BYTES, PAGE as u64)],
        &[(at + 1, BYTES, 0)],
        &[(at, half, half), (at << 1, half, 0)],
        &[(at, half, 0), (at << 1, half, 0)],
        &[(at, PAGE as u64, 0), (at << 1, BYTES - PAGE as u64, PAGE as u64)],
        &[(u64::MAX - 4095, BYTES, 0)],
        &[(at, u64::MAX - BLOCK_BYTES + 1, 0), (at, BYTES, u64::MAX - BLOCK_BYTES + 1)],
    ] {
        assert!(!told(wrong), "{wrong:?}");
    }
    assert!(read_regions(b"{", BYTES).is_err());
}

#[test]
fn machine_reads_the_memory_of_its_files_while_and_after_it_is_filled() {
    let Some((memory, faults)) = Waiting::new(PAGES * PAGE) else { return };
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own");
    fs::create_dir(&own).unwrap();
    let wanted = link(dir.path(), &own);
    let pager = Pager::begin(&own, regions(memory), faults).unwrap();
    assert!(list(&own) > 0);
    // A guest reads from the end, while the pager goes from the start.
    let guest = std::thread::spawn(move || {
        (0..PAGES).rev().map(|page| memory.read(page)).collect::<Vec<u8>>()
    });
    pager.run().unwrap();
    let mut seen = guest.join().unwrap();
    seen.reverse();
    assert_eq!(seen, wanted);
    assert_eq!(bytes_of(memory), wanted);
    assert_eq!(list(&own), 0, "a later agent has nothing to do");
}

#[test]
fn next_agent_completes_the_memory_after_a_crash_at_any_block() {
    let Some((memory, faults)) = Waiting::new(PAGES * PAGE) else { return };
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own");
    fs::create_dir(&own).unwrap();
    let wanted = link(dir.path(), &own);
    let machines = faults.try_clone().unwrap();
    let pager = Pager::begin(&own, regions(memory), faults).unwrap();
    let text = fs::read(own.join(LIST)).unwrap();
    // Two blocks are there, and the agent dies. The machine has its own descriptor.
    let (mut blocks, mut reader) = (pager.blocks().unwrap(), pager.base.reader());
    for number in [1, 4] {
        pager.fill_block(number, &mut blocks, &mut reader).unwrap();
    }
    drop(reader);
    drop(pager);
    let record = VmmRecord::of(i32::try_from(std::process::id()).unwrap(), None).unwrap();
    Pager::find(&own, &record).unwrap().unwrap().run().unwrap();
    assert_eq!(bytes_of(memory), wanted);
    assert!(Pager::find(&own, &record).unwrap().is_none());
    // The agent may die before it notes that all pages are there.
    fs::write(own.join(LIST), text).unwrap();
    Pager::find(&own, &record).unwrap().unwrap().run().unwrap();
    assert_eq!(bytes_of(memory), wanted);
    assert_eq!(list(&own), 0);
    drop(machines);
}

#[test]
fn damaged_layer_ends_the_pager_before_its_page_is_in_the_machine() {
    let Some((memory, faults)) = Waiting::new(PAGES * PAGE) else { return };
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own");
    fs::create_dir(&own).unwrap();
    link(dir.path(), &own);
    let path = own.join("above-1.pages");
    let mut bytes = fs::read(&path).unwrap();
    bytes[9] ^= 1;
    fs::write(&path, bytes).unwrap();
    let machines = Userfault::new(faults.try_clone().unwrap()).unwrap();
    let pager = Pager::begin(&own, regions(memory), faults).unwrap();
    assert!(is_damage(&pager.run().unwrap_err()));
    assert!(list(&own) > 0);
    // The page of the damaged layer is still missing.
    machines.copy(memory.at + 128 * PAGE as u64, &[99; PAGE]).unwrap();
    assert_eq!(memory.read(128), 99);
}

#[test]
fn new_machine_whose_memory_cannot_be_filled_is_a_failure() {
    let Some((memory, faults)) = Waiting::new(PAGES * PAGE) else { return };
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own");
    fs::create_dir(&own).unwrap();
    link(dir.path(), &own);
    let pager = Pager::begin(&own, regions(memory), faults).unwrap();
    // Nobody but an earlier agent may have released the memory.
    pager.faults.release(memory.at, BYTES).unwrap();
    assert!(is(&pager.run().unwrap_err(), Errno::NOENT));
    assert!(list(&own) > 0);
}

#[test]
fn first_machine_decides_whether_later_ones_are_filled() {
    let error = |errno: Errno| Err(io::Error::from(errno));
    for (noted, is_failure) in [
        (&[Ok(()), error(Errno::INVAL)][..], false),
        (&[error(Errno::INVAL), Ok(())][..], true),
        (&[error(Errno::SRCH), Err(crate::snapshot::damaged("a page"))][..], false),
        (&[error(Errno::SRCH), error(Errno::INVAL)][..], true),
    ] {
        let outcome = Outcome::default();
        for filled in noted {
            outcome.note(filled);
        }
        assert_eq!(outcome.is_failure(), is_failure, "{noted:?}");
    }
}

#[test]
fn address_outside_the_memory_is_ignored() {
    let Some((memory, faults)) = Waiting::new(PAGES * PAGE) else { return };
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own");
    fs::create_dir(&own).unwrap();
    link(dir.path(), &own);
    let pager = Pager::begin(&own, regions(memory), faults).unwrap();
    let (mut blocks, mut reader) = (pager.blocks().unwrap(), pager.base.reader());
    for address in [0, memory.at - 1, memory.at + BYTES, u64::MAX] {
        pager.answer(address, &mut blocks, &mut reader).unwrap();
    }
    assert!(blocks.iter().all(|block| *block != Block::Filled));
    // The block of zeros needs no file.
    pager.answer(memory.at + 3 * BLOCK_BYTES + 17, &mut blocks, &mut reader).unwrap();
    assert_eq!(blocks[3], Block::Filled);
    assert_eq!(memory.read(3 * BLOCK_PAGES), 0);
}

/// Asks for memory as Firecracker does.
fn ask(socket: &Path, text: &str, faults: &OwnedFd) -> io::Result<()> {
    let stream = net::UnixStream::connect(socket)?;
    let files = [faults.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&files));
    sendmsg(&stream, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::empty())?;
    std::mem::forget(stream);
    Ok(())
}

fn jail(dir: &Path) -> Jail {
    let programs = Programs { firecracker: "/bin/firecracker".into(), jailer: None };
    let jail = Jail::of(&programs, dir, "one", rustix::process::geteuid().as_raw());
    jail.make().unwrap();
    jail
}

#[tokio::test]
async fn load_goes_on_with_pages_from_the_socket() {
    let Some((memory, faults)) = Waiting::new(PAGES * PAGE) else { return };
    let dir = tempfile::tempdir().unwrap();
    let jail = jail(dir.path());
    let wanted = link(dir.path(), &jail.own);
    let mut machine = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let record = VmmRecord::of(i32::try_from(machine.id()).unwrap(), None).unwrap();
    let listener = listen(&jail).unwrap();
    let (socket, text) = (jail.root.join(SOCKET), serde_json::to_string(&regions(memory)).unwrap());
    // The load itself reads memory.
    let loading = blocking(move || {
        ask(&socket, &text, &faults)?;
        Ok((memory.read(301), faults))
    });
    let mut read = None;
    let loading = async {
        read = Some(loading.await?);
        Ok(())
    };
    let (tasks, outcome) = (Tasks::default(), Outcome::default());
    serve(listener, (&jail, &record, BYTES), (&tasks, &outcome), loading).await.unwrap();
    let (page, _machines) = read.unwrap();
    assert_eq!(page, 8);
    let all = blocking(move || Ok(bytes_of(memory))).await.unwrap();
    assert_eq!(all, wanted);
    tasks.finish().await;
    assert_eq!(list(&jail.own), 0);
    assert_eq!(outcome.0.get(), Some(&true));
    assert!(record.is_alive(), "the machine was ended");
    machine.kill().unwrap();
    machine.wait().unwrap();
}

#[tokio::test]
async fn failed_load_is_reported_without_a_request_for_memory() {
    let dir = tempfile::tempdir().unwrap();
    let jail = jail(dir.path());
    let record = VmmRecord { pid: 0, started: 0, boot: String::new(), port: None };
    for (loaded, told) in [(Err(io::Error::other("no state")), "no state"), (Ok(()), "did not ask")]
    {
        let loading = std::future::ready(loaded);
        let of = (&jail, &record, BYTES);
        let with = (&Tasks::default(), &Outcome::default());
        let served = serve(listen(&jail).unwrap(), of, with, loading).await;
        let error = served.unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
    // A descriptor of another kind is refused.
    let file: OwnedFd = tempfile::tempfile().unwrap().into();
    let socket = jail.root.join(SOCKET);
    let listener = listen(&jail).unwrap();
    ask(&socket, "[]", &file).unwrap();
    let of = (&jail, &record, 0);
    let with = (&Tasks::default(), &Outcome::default());
    let served = serve(listener, of, with, std::future::pending()).await;
    assert!(served.unwrap_err().to_string().contains("no userfaultfd"));
}
