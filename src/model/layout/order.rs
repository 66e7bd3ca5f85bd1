//! From the order of numbers in a file to the one that the ops read, and back.

/// Order of the numbers of a stored tensor, relative to the rows of outputs that the ops read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The same.
    Same,
    /// The file holds `[inputs, outputs]`.
    Transposed,
    /// The file holds query, key and value rows of one head behind the other, head by head; the ops read all queries,
    /// then all keys, then all values.
    ByHead {
        /// H, as many query as key heads.
        heads: usize,
        /// D.
        width: usize,
    },
}

impl Order {
    /// Returns the shape that the ops read of a tensor of `stored` shape.
    pub fn laid(self, stored: &[usize]) -> Vec<usize> {
        match self {
            Self::Transposed => stored.iter().rev().copied().collect(),
            Self::Same | Self::ByHead { .. } => stored.to_vec(),
        }
    }

    /// Visits runs of numbers that lie together on both sides: where they start in the file, where for the ops, and how
    /// many they are.
    fn runs(self, stored: &[usize], mut visit: impl FnMut(usize, usize, usize)) {
        let len: usize = stored.iter().product();
        match (self, stored) {
            (Self::Transposed, &[inputs, outputs]) => {
                for o in 0..outputs {
                    for i in 0..inputs {
                        visit(i * outputs + o, o * inputs + i, 1);
                    }
                }
            }
            (Self::ByHead { heads, width }, &[rows, ..]) => {
                let run = len / rows.max(1) * width;
                for h in 0..heads {
                    for part in 0..3 {
                        visit((3 * h + part) * run, (part * heads + h) * run, run);
                    }
                }
            }
            _ => visit(0, 0, len),
        }
    }

    /// Brings numbers from the file's order into that of the ops.
    pub fn read(self, stored: &[usize], file: &[f32], ops: &mut [f32]) {
        self.runs(stored, |from, to, n| ops[to..to + n].copy_from_slice(&file[from..from + n]));
    }

    /// Brings numbers from the order of the ops into the file's.
    pub fn write(self, stored: &[usize], ops: &[f32], file: &mut [f32]) {
        self.runs(stored, |to, from, n| file[to..to + n].copy_from_slice(&ops[from..from + n]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(order: Order, stored: &[usize]) -> Vec<f32> {
        let file: Vec<f32> = (0..stored.iter().product::<usize>()).map(|i| i as f32).collect();
        let (mut ops, mut back) = (vec![f32::NAN; file.len()], vec![f32::NAN; file.len()]);
        order.read(stored, &file, &mut ops);
        order.write(stored, &ops, &mut back);
        assert_eq!(back, file);
        ops
    }

    #[test]
    fn transposed_matrices_become_rows_of_outputs() {
        assert_eq!(both(Order::Transposed, &[2, 3]), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(Order::Transposed.laid(&[2, 3]), [3, 2]);
        assert_eq!(both(Order::Same, &[2, 2]), [0.0, 1.0, 2.0, 3.0]);
    }

    #[test]
    fn rows_by_head_become_queries_keys_and_values() {
        let order = Order::ByHead { heads: 2, width: 1 };
        assert_eq!(both(order, &[6]), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        let rows = both(Order::ByHead { heads: 2, width: 2 }, &[12, 1]);
        assert_eq!(rows, [0.0, 1.0, 6.0, 7.0, 2.0, 3.0, 8.0, 9.0, 4.0, 5.0, 10.0, 11.0]);
    }
}
