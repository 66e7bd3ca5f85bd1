//! What is minimised: forget losses, penalties, the mean teacher.
