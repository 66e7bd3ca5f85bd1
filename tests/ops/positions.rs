//! Learned positions, forth and back.

use nepenthe::backend::cpu::{Cpu, Grad};
use nepenthe::ops::Compute;

use crate::support::Random;
use crate::{documents, load, read};

#[test]
fn positions_add_rows_of_the_table_and_their_gradients_come_back() {
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(39);
    let (c, rows, first) = (3, 9, 2);
    let pack = load(&ops, &documents(&[4, 1, 7], 11, &mut random));
    let (table, x) = (random.vec(rows * c), random.vec(12 * c));
    let mut y = x.clone();
    ops.positions(&pack, c, (rows, first), &table, &mut y);
    let places = [0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 5, 6];
    let mut grad = Grad::wide(rows * c);
    ops.positions_bwd(&pack, c, (rows, first), &y, &mut grad);
    let mut want = vec![0.0; rows * c];
    for (row, place) in places.into_iter().enumerate() {
        for i in 0..c {
            let at = (first + place) * c + i;
            assert_eq!(y[row * c + i], x[row * c + i] + table[at]);
            want[at] += y[row * c + i];
        }
    }
    assert_eq!(read(&grad), want);
}

#[test]
fn positions_behind_the_table_read_its_last_row_and_have_no_gradient() {
    let ops = Cpu::<f64>::new();
    let mut random = Random::new(40);
    let pack = load(&ops, &documents(&[5], 11, &mut random));
    let mut y = vec![0.0; 5];
    ops.positions(&pack, 1, (3, 0), &[1.0, 2.0, 3.0], &mut y);
    assert_eq!(y, [1.0, 2.0, 3.0, 3.0, 3.0]);
    let mut grad = Grad::wide(3);
    ops.positions_bwd(&pack, 1, (3, 0), &y, &mut grad);
    assert_eq!(read(&grad), [1.0, 2.0, 3.0]);
}
