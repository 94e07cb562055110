//! Memory of a machine that has layers above its image. Nothing is copied before the machine runs.
//! Firecracker begins with empty memory, and waits in each page that it touches. A task of the
//! agent puts that page there, and all others meanwhile. Then the memory is like any other.
//!
//! ```text
//!  load ─▶ Firecracker connects: its userfaultfd, its regions ─▶ list ─▶ pager ─▶ all pages there
//!             adopt, after an agent that ended too early ─────────▲        └─▶ fails: machine ends
//! ```
//! Pages come from links in the machine's own folder (`snapshot/base.rs`). Each is checked on its
//! way. Firecracker holds the userfaultfd too, so a guest outlives the agent. The guest waits in a
//! missing page until the next agent fills the page.

use super::jail::Jail;
use crate::snapshot::base::{Base, Reader};
use crate::snapshot::is_damage;
use crate::snapshot::layer::{PAGE, ZERO};
use crate::sys::userfault::Userfault;
use crate::vmm::{VmmRecord, kill_record, socket};
use daemon::{Tasks, blocking};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

/// Device by which a jailed Firecracker makes a userfaultfd.
const DEVICE: &str = "/dev/userfaultfd";
/// Socket in the machine's root.
pub(super) const SOCKET: &str = "pages.sock";
/// List of the machine's regions, in the driver's own folder. The list is empty once all pages are
/// there.
const LIST: &str = "paging.json";
/// Most bytes of Firecracker's message.
const MESSAGE_MAX: usize = 16 * 1024;
/// Pages that are put into a machine at once. Regions of memory are multiples of it.
const BLOCK_PAGES: usize = 64;
const BLOCK: u64 = BLOCK_PAGES as u64;
const BLOCK_BYTES: u64 = BLOCK * PAGE as u64;
/// Most touched pages that precede the next block in order. So a hostile machine cannot keep the
/// task busy for ever.
const TOUCHED_MAX: usize = 16;

/// Reports whether a machine's memory can be filled while it runs. The jailer gives Firecracker the
/// device if the host has it.
pub(super) fn is_possible(jailed: bool) -> bool {
    jailed && Path::new(DEVICE).exists()
}

/// Outcome of the first machine that was filled while it ran. If it failed, machines begin with one
/// file of image and layers until the agent restarts.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome(Arc<OnceLock<bool>>);

impl Outcome {
    /// Reports whether the first machine failed.
    pub(super) fn is_failure(&self) -> bool {
        self.0.get() == Some(&false)
    }

    /// Notes the outcome for a machine, which counts if it is the first. Damaged files, and a
    /// machine that was ended, tell nothing about this host.
    pub(super) fn note(&self, filled: &io::Result<()>) {
        let works = match filled {
            Ok(()) => true,
            Err(error) if is_damage(error) || is(error, Errno::SRCH) => return,
            Err(_) => false,
        };
        if self.0.set(works).is_ok()
            && let Err(error) = filled
        {
            tracing::error!(%error, "resumes copy memory to the disk until the agent restarts");
        }
    }
}

/// Part of a guest's memory in Firecracker's process. Firecracker sends more fields.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Region {
    /// Address in the process.
    base_host_virt_addr: u64,
    size: u64,
    /// Place in the memory, as files hold it.
    offset: u64,
}

/// Reads Firecracker's list of regions, which have `bytes` together.
fn read_regions(text: &[u8], bytes: u64) -> io::Result<Vec<Region>> {
    let regions: Vec<Region> = serde_json::from_slice(text)?;
    let mut at = Some(0_u64);
    for Region { base_host_virt_addr: address, size, offset } in &regions {
        let is_whole = address % PAGE as u64 == 0 && size % BLOCK_BYTES == 0;
        let follows = at == Some(*offset) && address.checked_add(*size).is_some();
        at = at.and_then(|at| at.checked_add(*size)).filter(|_| is_whole && follows);
    }
    let wrong = || io::Error::other("Firecracker described its memory in an unknown way");
    (at == Some(bytes)).then_some(regions).ok_or_else(wrong)
}

/// Listens for a machine that is about to ask for its memory.
pub(super) fn listen(jail: &Jail) -> io::Result<UnixListener> {
    let listener = socket::listen(&jail.root, SOCKET)?;
    listener.set_nonblocking(true)?;
    jail.chown(&jail.root.join(SOCKET))?;
    UnixListener::from_std(listener)
}

/// Fills a machine's memory of `bytes`, while and after `loading` has Firecracker load its state.
/// Notes the outcome.
pub(super) async fn serve(
    listener: UnixListener,
    (jail, record, bytes): (&Jail, &VmmRecord, u64),
    (tasks, outcome): (&Tasks, &Outcome),
    loading: impl Future<Output = io::Result<()>>,
) -> io::Result<()> {
    tokio::pin!(loading);
    let (told, faults) = tokio::select! {
        loaded = &mut loading => {
            loaded?;
            return Err(io::Error::other("Firecracker did not ask for its memory"));
        }
        asked = accept(&listener) => asked?,
    };
    let own = jail.own.clone();
    let made = blocking(move || Pager::begin(&own, read_regions(&told, bytes)?, faults)).await?;
    let outcome = outcome.clone();
    spawn(tasks, record.clone(), move || {
        let filled = made.run();
        outcome.note(&filled);
        filled
    });
    loading.await
}

/// Goes on with the memory of a machine that an earlier agent started.
pub(super) fn go_on(jail: &Jail, record: &VmmRecord, tasks: &Tasks) {
    if fs::metadata(jail.own.join(LIST)).is_ok_and(|list| list.len() > 0) {
        let (own, of) = (jail.own.clone(), record.clone());
        let work = move || Pager::find(&own, &of)?.map_or(Ok(()), Pager::run);
        spawn(tasks, record.clone(), work);
    }
}

/// Runs a pager. If it fails, the machine is ended, since its guest would wait for ever.
fn spawn(
    tasks: &Tasks,
    record: VmmRecord,
    pager: impl FnOnce() -> io::Result<()> + Send + 'static,
) {
    tasks.spawn(async move {
        let Err(error) = blocking(pager).await else { return };
        // A process without memory is about to end.
        if is(&error, Errno::SRCH) || !record.is_alive() {
            return;
        }
        tracing::error!(pid = record.pid, %error, "ending a machine whose memory cannot be filled");
        if let Err(error) = kill_record(&record).await {
            tracing::error!(%error, source = ?error.source, "cannot end the machine");
        }
    });
}

/// Waits until Firecracker sends its regions and its userfaultfd.
async fn accept(listener: &UnixListener) -> io::Result<(Vec<u8>, OwnedFd)> {
    let (stream, _) = listener.accept().await?;
    loop {
        stream.readable().await?;
        match stream.try_io(Interest::READABLE, || receive(&stream)) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            received => return received,
        }
    }
}

fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, OwnedFd)> {
    let mut bytes = vec![0; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(stream, parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    bytes.truncate(received.bytes);
    let mut faults = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut files) = message {
            faults = files.next();
        }
    }
    let faults = faults.ok_or_else(|| io::Error::other("Firecracker sent no userfaultfd"))?;
    Ok((bytes, faults))
}

/// State of a block of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    /// The files may hold data of it.
    Data,
    /// All of it is zeros.
    Zeros,
    /// Its pages are in the machine.
    Filled,
}

/// Filler of one machine's memory.
#[derive(Debug)]
struct Pager {
    faults: Userfault,
    base: Base,
    regions: Vec<Region>,
    list: File,
    /// True for a machine that an earlier agent started.
    found: bool,
}

impl Pager {
    /// Makes the pager of a new machine. From then on, another agent can make it too.
    fn begin(own: &Path, regions: Vec<Region>, faults: OwnedFd) -> io::Result<Self> {
        let faults = Userfault::new(faults)?;
        let base = open_base(own)?;
        fs::write(own.join(LIST), serde_json::to_vec(&regions)?)?;
        let list = File::options().write(true).open(own.join(LIST))?;
        Ok(Self { faults, base, regions, list, found: false })
    }

    /// Makes the pager of a machine that lacks pages; `None` for a machine that has all.
    fn find(own: &Path, record: &VmmRecord) -> io::Result<Option<Self>> {
        let text = fs::read(own.join(LIST))?;
        if text.is_empty() {
            return Ok(None);
        }
        let list = File::options().write(true).open(own.join(LIST))?;
        let faults = Userfault::of_process(record.pid, record.started)?;
        let (base, regions) = (open_base(own)?, serde_json::from_slice(&text)?);
        Ok(Some(Self { faults, base, regions, list, found: true }))
    }

    /// Puts all pages into the machine, and touched ones first.
    fn run(self) -> io::Result<()> {
        match self.fill() {
            // An earlier agent ended between the last page and its note in the list.
            Err(error) if self.found && is(&error, Errno::NOENT) => {}
            filled => filled?,
        }
        for region in &self.regions {
            self.faults.release(region.base_host_virt_addr, region.size)?;
        }
        // The list is that of this machine, even if another one has the folder by now.
        self.list.set_len(0)
    }

    fn fill(&self) -> io::Result<()> {
        let mut blocks = self.blocks()?;
        let mut reader = self.base.reader();
        for number in 0..blocks.len() {
            for _ in 0..TOUCHED_MAX {
                let Some(address) = self.faults.touched()? else { break };
                self.answer(address, &mut blocks, &mut reader)?;
            }
            if blocks[number] == Block::Data {
                self.fill_block(number, &mut blocks, &mut reader)?;
            }
        }
        Ok(())
    }

    /// Returns the states of all blocks before the first page is there.
    fn blocks(&self) -> io::Result<Vec<Block>> {
        let bytes: u64 = self.regions.iter().map(|region| region.size).sum();
        let count = usize::try_from(bytes / BLOCK_BYTES).map_err(io::Error::other)?;
        let mut blocks = vec![Block::Zeros; count];
        for range in self.base.data(bytes / PAGE as u64)? {
            let numbers = range.start / BLOCK..range.end.div_ceil(BLOCK);
            for number in numbers {
                let number = usize::try_from(number).map_err(io::Error::other)?;
                if let Some(block) = blocks.get_mut(number) {
                    *block = Block::Data;
                }
            }
        }
        Ok(blocks)
    }

    /// Puts a touched page into the machine, with its block. The address may be any number.
    fn answer(
        &self,
        address: u64,
        blocks: &mut [Block],
        reader: &mut Reader<'_>,
    ) -> io::Result<()> {
        let inside = |region: &&Region| {
            let within = address.checked_sub(region.base_host_virt_addr);
            within.is_some_and(|within| within < region.size)
        };
        let Some(region) = self.regions.iter().find(inside) else { return Ok(()) };
        let place = address - region.base_host_virt_addr + region.offset;
        let number = usize::try_from(place / BLOCK_BYTES).map_err(io::Error::other)?;
        let page = address - address % PAGE as u64;
        match blocks.get(number).copied() {
            Some(Block::Data | Block::Zeros) => self.fill_block(number, blocks, reader)?,
            // The machine gave up the page, or the page came after the message.
            Some(Block::Filled) => self.faults.zero(page, PAGE as u64)?,
            None => {}
        }
        self.faults.wake(page, PAGE as u64)
    }

    /// Puts a block into the machine. Pages of zeros take no memory.
    fn fill_block(
        &self,
        number: usize,
        blocks: &mut [Block],
        reader: &mut Reader<'_>,
    ) -> io::Result<()> {
        let place = number as u64 * BLOCK_BYTES;
        let inside = |region: &&Region| place - region.offset < region.size;
        let region = self.regions.iter().rfind(|region| region.offset <= place).filter(inside);
        let missing = || io::Error::other("a block is in no region");
        let region = region.ok_or_else(missing)?;
        let mut at = region.base_host_virt_addr + (place - region.offset);
        if blocks[number] == Block::Zeros {
            self.faults.zero(at, BLOCK_BYTES)?;
        } else {
            let mut buffer = vec![0; BLOCK_PAGES * PAGE];
            reader.read(number as u64 * BLOCK, &mut buffer)?;
            let (pages, _) = buffer.as_chunks::<PAGE>();
            for run in pages.chunk_by(|one, next| (*one == ZERO) == (*next == ZERO)) {
                let bytes = run.as_flattened();
                match run[0] == ZERO {
                    true => self.faults.zero(at, bytes.len() as u64)?,
                    false => self.faults.copy(at, bytes)?,
                }
                at += bytes.len() as u64;
            }
        }
        blocks[number] = Block::Filled;
        Ok(())
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// Opens the memory that a machine began with.
fn open_base(own: &Path) -> io::Result<Base> {
    Base::open(own)?
        .ok_or_else(|| io::Error::other("the memory that the machine began with is gone"))
}

#[cfg(test)]
mod tests;
