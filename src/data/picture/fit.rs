//! How pictures become images: the settings.

use anyhow::Result;

use super::MEGAPIXELS;
use super::resize::{Filter, Shape};
use crate::base::setting::{Setting, Settings};
use crate::data::{CHANNELS, IMAGE_SIZE};

/// What transparent pixels of a picture lie on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Background {
    /// Chosen for the whole set: see [`super::border`].
    #[default]
    Auto,
    /// This colour.
    Colour([u8; 3]),
}

/// The background of transparent pictures.
pub static BACKGROUND: Setting<Background> = Setting::new(
    "background",
    "What transparent pixels lie on, unless --channels is 4; also around pictures with --fit pad",
    "auto, black, white, or R,G,B",
    |text| match text {
        "auto" => Some(Background::Auto),
        "black" => Some(Background::Colour([0; 3])),
        "white" => Some(Background::Colour([255; 3])),
        _ => {
            let values: Option<Vec<u8>> = text.split(',').map(|v| v.trim().parse().ok()).collect();
            values?.try_into().ok().map(Background::Colour)
        }
    },
    |v| {
        toml::Value::String(match v {
            Background::Auto => "auto".into(),
            Background::Colour([0, 0, 0]) => "black".into(),
            Background::Colour([255, 255, 255]) => "white".into(),
            Background::Colour([r, g, b]) => format!("{r},{g},{b}"),
        })
    },
)
.range("with values from 0 to 255", |_| true)
.default("auto", "white if most of the set's border pixels are transparent, else black")
.value_name("COLOUR");

/// The filter of a resize.
pub static RESIZE: Setting<Filter> = Setting::choice("resize", "Filter that scales pictures to --image-size")
    .default("lanczos", "sharp without aliasing: what Pillow and the papers' data sets use")
    .value_name("FILTER");

/// What happens to pictures of another aspect ratio.
pub static FIT: Setting<Shape> =
    Setting::choice("fit", "Bring pictures to the shape of --image-size: cut them, pad them, or stretch them")
        .default("crop", "no distortion and no bars")
        .value_name("HOW");

/// The largest picture.
pub static MAX_PICTURE: Setting<u64> =
    Setting::whole("max-picture", "Refuse pictures of more megapixels (at 4 bytes a pixel)")
        .range("from 1 to 512", |n| (1..=MEGAPIXELS.0).contains(n))
        .default("128", "photographs of 108 megapixels are read, and two cores take 1.3 GB at most")
        .value_name("MEGAPIXELS");

/// How pictures become images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// (H,W); none keeps the size of the pictures.
    pub size: Option<(usize, usize)>,
    /// C; none for 3, or 1 if all pictures are grey.
    pub channels: Option<usize>,
    /// What transparent pixels lie on. [`Background::Auto`] counts as black: the reader of a set puts here what [`super::border`] says.
    pub background: Background,
    /// The filter of a resize.
    pub filter: Filter,
    /// What happens to pictures of another aspect ratio.
    pub shape: Shape,
    /// The largest picture in megapixels.
    pub megapixels: u64,
}

impl Default for Fit {
    fn default() -> Self {
        Fit {
            size: None,
            channels: None,
            background: Background::default(),
            filter: Filter::default(),
            shape: Shape::default(),
            megapixels: MEGAPIXELS.1,
        }
    }
}

impl Fit {
    /// Of the settings.
    ///
    /// # Errors
    /// Those of a setting that cannot be read.
    pub fn of(s: &Settings) -> Result<Self> {
        Ok(Fit {
            size: s.given(&IMAGE_SIZE),
            channels: s.given(&CHANNELS).map(|c| c as usize),
            background: s.get(&BACKGROUND)?,
            filter: s.get(&RESIZE)?,
            shape: s.get(&FIT)?,
            megapixels: s.get(&MAX_PICTURE)?,
        })
    }

    /// Chooses what transparent pixels lie on by how many of the set's border pixels are transparent, and of how many: see
    /// [`super::border`]. Gives a note where there are any.
    pub fn choose_background(&mut self, (transparent, all): (u64, u64)) -> Option<String> {
        let (name, colour) = if 2 * transparent > all { ("white", [255; 3]) } else { ("black", [0; 3]) };
        self.background = Background::Colour(colour);
        let share = 100 * transparent / all.max(1);
        (all > 0).then(|| {
            format!(
                "transparent pixels become {name} ({share} % of the borders are transparent; --background chooses, --channels 4 keeps \
                 them)"
            )
        })
    }

    pub(super) fn colour(&self) -> [u8; 3] {
        match self.background {
            Background::Auto => [0; 3],
            Background::Colour(colour) => colour,
        }
    }
}
