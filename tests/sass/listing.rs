//! Reads what nvdisasm prints of a cubin: instructions by kernel, loops, and what was counted in them.

use std::collections::HashMap;

/// An entry point as nvdisasm prints it.
pub struct Listing {
    pub kernel: String,
    /// Instructions in their order, without addresses and predicates.
    lines: Vec<String>,
    /// Backward branches: the first and the last instruction of a loop.
    loops: Vec<(usize, usize)>,
}

/// Counts of a kernel, and of its hot loop: the one with the largest share of products of warpgroups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Instructions of the kernel.
    pub instructions: usize,
    /// Instructions of the hot loop.
    pub hot: usize,
    /// Fences of the whole GPU in the kernel (`MEMBAR.*.GPU`).
    pub fences: usize,
    /// Of these in the hot loop.
    pub hot_fences: usize,
    /// Invalidations of the L1 in the kernel (`CCTL.IVALL`).
    pub flushes: usize,
    /// Of these in the hot loop.
    pub hot_flushes: usize,
    /// Accesses to local memory in the kernel: spills and arrays that are no registers.
    pub local: usize,
    /// Regions of diverging threads in the kernel (`BSSY`).
    pub regions: usize,
    /// High products, of which each integer division takes two, between the last wait for products and the wait behind it.
    pub divisions: usize,
    /// Exponentials of the hot loop (`MUFU.EX2`).
    pub exponentials: usize,
    /// Of these with a product of warpgroups in flight.
    pub overlapped: usize,
}

impl Figures {
    /// The figures in the order in which [`Figures::from_fields`] takes them.
    pub fn fields(&self) -> [usize; 11] {
        [
            self.instructions,
            self.hot,
            self.fences,
            self.hot_fences,
            self.flushes,
            self.hot_flushes,
            self.local,
            self.regions,
            self.divisions,
            self.exponentials,
            self.overlapped,
        ]
    }

    pub fn from_fields(fields: [usize; 11]) -> Self {
        let [
            instructions,
            hot,
            fences,
            hot_fences,
            flushes,
            hot_flushes,
            local,
            regions,
            divisions,
            exponentials,
            overlapped,
        ] = fields;
        Self {
            instructions,
            hot,
            fences,
            hot_fences,
            flushes,
            hot_flushes,
            local,
            regions,
            divisions,
            exponentials,
            overlapped,
        }
    }
}

/// Reads a label: `.L_x_7:`.
fn label(line: &str) -> Option<&str> {
    line.strip_prefix('.')?.strip_suffix(':').filter(|name| name.starts_with("L_"))
}

/// Reads an instruction, `/*0ae0*/  @!P0 BRA ... ;`, without address and predicate.
fn instruction(line: &str) -> Option<&str> {
    let (address, rest) = line.strip_prefix("/*")?.split_once("*/")?;
    u64::from_str_radix(address, 16).ok()?;
    let text = rest.split(';').next()?.trim();
    let text = match text.strip_prefix('@') {
        Some(predicated) => predicated.split_once(' ')?.1.trim_start(),
        None => text,
    };
    (!text.is_empty()).then_some(text)
}

/// Reads all kernels of a listing of `nvdisasm -c`.
pub fn read(text: &str) -> Vec<Listing> {
    let mut all: Vec<Listing> = Vec::new();
    let (mut inside, mut labels) = (false, HashMap::new());
    for line in text.lines() {
        let line = line.trim();
        if let Some(kernel) = line.strip_prefix(".text.").and_then(|name| name.strip_suffix(':')) {
            all.push(Listing { kernel: kernel.to_owned(), lines: Vec::new(), loops: Vec::new() });
            (inside, labels) = (true, HashMap::new());
            continue;
        }
        if line.starts_with(".section") && !line.contains(".text.") {
            inside = false;
        }
        let Some(listing) = all.last_mut().filter(|_| inside) else { continue };
        if let Some(name) = label(line) {
            labels.insert(name.to_owned(), listing.lines.len());
        } else if let Some(text) = instruction(line) {
            let at = listing.lines.len();
            listing.lines.push(text.to_owned());
            let target = text
                .strip_prefix("BRA")
                .and_then(|rest| rest.split_once("`(.")?.1.split(')').next())
                .and_then(|name| labels.get(name));
            listing.loops.extend(target.map(|&first| (first, at)));
        }
    }
    all
}

impl Listing {
    /// The first and the last instruction of the loop with the largest share of products of warpgroups: ptxas lays parts
    /// of an outer loop in front of an inner one, so that the smallest loop need not be the innermost.
    fn hot(&self) -> Option<(usize, usize)> {
        let share = |&&(first, last): &&(usize, usize)| {
            let lines = &self.lines[first..=last];
            let products = lines.iter().filter(|line| line.starts_with("HGMMA")).count();
            1_000_000 * products / lines.len()
        };
        self.loops.iter().filter(|of| share(of) > 0).max_by_key(share).copied()
    }

    /// Counts; `None` for a kernel without a loop of products.
    pub fn figures(&self) -> Option<Figures> {
        let (first, last) = self.hot()?;
        let hot = &self.lines[first..=last];
        let count = |lines: &[String], wanted: fn(&str) -> bool| {
            lines.iter().filter(|line| wanted(line)).count()
        };
        let fence = |line: &str| line.starts_with("MEMBAR") && line.contains(".GPU");
        let flush = |line: &str| line.starts_with("CCTL.IVALL");
        let ends = |line: &str| line.starts_with("WARPGROUP.DEPBAR") && line.ends_with("0x0");
        // Behind the loop: from the wait for all products to the next wait for a barrier.
        let behind = self.lines[last..].iter().skip_while(|line| !ends(line));
        let divisions = behind
            .take_while(|line| !line.starts_with("SYNCS.PHASECHK"))
            .filter(|line| line.starts_with("IMAD.HI"))
            .count();
        let (mut overlapped, mut flying) = (0, false);
        for line in hot {
            flying = (flying || line.starts_with("HGMMA")) && !ends(line);
            overlapped += usize::from(flying && line.starts_with("MUFU.EX2"));
        }
        Some(Figures {
            instructions: self.lines.len(),
            hot: hot.len(),
            fences: count(&self.lines, fence),
            hot_fences: count(hot, fence),
            flushes: count(&self.lines, flush),
            hot_flushes: count(hot, flush),
            local: count(&self.lines, |line| line.starts_with("LDL") || line.starts_with("STL")),
            regions: count(&self.lines, |line| line.starts_with("BSSY")),
            divisions,
            exponentials: count(hot, |line| line.starts_with("MUFU.EX2")),
            overlapped,
        })
    }
}
