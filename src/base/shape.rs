//! The shape of an image.

use serde::{Deserialize, Serialize};

/// Shape of one image: C channels, H rows, W columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// C.
    pub channels: i64,
    /// H in pixels.
    pub height: i64,
    /// W in pixels.
    pub width: i64,
}

impl Shape {
    /// [C,H,W].
    pub fn dims(self) -> [i64; 3] {
        [self.channels, self.height, self.width]
    }

    /// C·H·W.
    pub fn numel(self) -> i64 {
        self.channels * self.height * self.width
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}x{}x{}", self.channels, self.height, self.width)
    }
}
