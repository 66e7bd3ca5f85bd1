//! Numbers with units.

/// Writes a number of bytes with a binary unit.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.iter().find(|(_, shift)| n >> shift > 0) {
        Some((unit, shift)) => format!("{:.2} {unit}", n as f64 / (1u64 << shift) as f64),
        None => format!("{n} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_picks_the_unit() {
        assert_eq!([bytes(12), bytes(1536), bytes(80 << 30)], ["12 B", "1.50 KiB", "80.00 GiB"]);
    }
}
