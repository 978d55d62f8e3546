//! Which split and class each picture belongs to: read from the folders in its path, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use crate::base::names::{escaped, printable};

/// Folders of training pictures, in lower case.
const TRAIN: [&str; 2] = ["train", "training"];
/// Folders of held-out pictures. Where there is one of these, those of [`VALIDATION`] are not used.
const TEST: [&str; 3] = ["test", "testing", "eval"];
/// Folders that are held out where there is no test set.
const VALIDATION: [&str; 4] = ["valid", "validation", "val", "dev"];

/// A split of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Split {
    /// Trained on.
    Train,
    /// Held out.
    Test,
    /// In neither.
    Neither,
}

/// What the names of the pictures say.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    /// The split of each picture, by its index; none where the folders give no split.
    pub splits: Option<Vec<Split>>,
    /// Names of the classes, sorted; empty without classes.
    pub classes: Vec<String>,
    /// The class of each picture; empty without classes. 0 for a picture of neither split.
    pub labels: Vec<u32>,
    /// What a user should know: what was left out or chosen.
    pub notes: Vec<String>,
}

/// Reads splits and classes from the paths of the pictures below the root of the data set.
///
/// *Splits.* A folder `train` (or `training`) beside `test`, `testing` or `eval`, else beside `valid`, `validation`, `val` or `dev`,
/// in any case of letters. Pictures beside these folders are in neither split. A root with one folder is looked through for splits;
/// in an `archive`, such a folder is the root.
///
/// *Classes.* The first folder below the root, or below a split, names the class; deeper folders belong to it. Pictures that lie
/// beside such folders have no class: then no picture has one.
pub fn layout(names: &[PathBuf], archive: bool) -> Layout {
    let mut notes = Vec::new();
    let parts: Vec<Vec<&OsStr>> = names.iter().map(|name| folders(name)).collect();
    let mut root = 0;
    let mut kind = None;
    while kind.is_none() {
        let firsts: BTreeSet<&OsStr> = parts.iter().filter_map(|p| p.get(root).copied()).collect();
        kind = split_kind(&firsts);
        let loose = parts.iter().any(|p| p.len() <= root);
        let only = if loose || firsts.len() != 1 { None } else { firsts.first() };
        let (Some(only), None) = (only, kind) else { break };
        if is(TRAIN, only) {
            notes.push(format!("{} has no test folder beside it: a part of it is held out", printable(only)));
            root += 1;
            break;
        }
        let below: BTreeSet<&OsStr> = parts.iter().filter_map(|p| p.get(root + 1).copied()).collect();
        if !archive && split_kind(&below).is_none() {
            break;
        }
        root += 1;
    }
    let splits = kind.map(|held_out| {
        let split = |p: &Vec<&OsStr>| match p.get(root) {
            Some(folder) if is(TRAIN, folder) => Split::Train,
            Some(folder) if is_any(held_out, folder) => Split::Test,
            _ => Split::Neither,
        };
        let splits: Vec<Split> = parts.iter().map(split).collect();
        let mut unused: BTreeMap<String, usize> = BTreeMap::new();
        for (p, _) in parts.iter().zip(&splits).filter(|(_, split)| **split == Split::Neither) {
            *unused.entry(p.get(root).map_or("no folder".into(), printable)).or_default() += 1;
        }
        for (folder, count) in unused {
            let all = parts.iter().filter_map(|p| p.get(root));
            let used: BTreeSet<String> = all.filter(|f| is(TRAIN, f) || is_any(held_out, f)).map(printable).collect();
            let used = used.into_iter().collect::<Vec<_>>().join(" and ");
            notes.push(format!("left out: {count} pictures in {folder}, because {used} are the splits"));
        }
        splits
    });
    let depth = root + usize::from(splits.is_some());
    let used = |i: usize| splits.as_ref().is_none_or(|s| s[i] != Split::Neither);
    let class = |i: usize| parts[i].get(depth).map(escaped);
    let all: Vec<Option<String>> = (0..parts.len()).filter(|i| used(*i)).map(class).collect();
    let with = all.iter().flatten().count();
    let mut classes: Vec<String> = Vec::new();
    if with == all.len() {
        classes = all.into_iter().flatten().collect::<BTreeSet<_>>().into_iter().collect();
    } else if with > 0 {
        notes.push(format!(
            "{with} pictures are in class folders and {} beside them: no picture gets a class",
            all.len() - with
        ));
    }
    let number = |i: usize| class(i).and_then(|name| classes.binary_search(&name).ok()).unwrap_or(0) as u32;
    let labels = if classes.is_empty() { Vec::new() } else { (0..parts.len()).map(number).collect() };
    Layout { splits, labels, classes, notes }
}

/// The folders in a path, from the root.
fn folders(name: &Path) -> Vec<&OsStr> {
    let folders = name.parent().into_iter().flat_map(Path::components);
    folders.filter_map(|c| if let Component::Normal(part) = c { Some(part) } else { None }).collect()
}

fn is<const N: usize>(names: [&str; N], folder: &OsStr) -> bool {
    is_any(&names, folder)
}

fn is_any(names: &[&str], folder: &OsStr) -> bool {
    names.contains(&folder.to_string_lossy().to_lowercase().as_str())
}

/// The names of held-out folders that these folders use; none where they are no splits.
fn split_kind(folders: &BTreeSet<&OsStr>) -> Option<&'static [&'static str]> {
    let any = |names: &[&str]| folders.iter().any(|folder| is_any(names, folder));
    match (any(&TRAIN), any(&TEST), any(&VALIDATION)) {
        (true, true, _) => Some(&TEST),
        (true, false, true) => Some(&VALIDATION),
        _ => None,
    }
}

/// The held-out pictures of a set without splits: `count` of them, evenly spread over the pictures in the order of their classes. At
/// least one picture is left to train on.
pub fn hold_out(labels: &[u32], pictures: usize, count: usize) -> Vec<bool> {
    let mut by_class: Vec<usize> = (0..pictures).collect();
    by_class.sort_by_key(|i| labels.get(*i).copied().unwrap_or(0));
    let count = count.min(pictures.saturating_sub(1));
    let mut held_out = vec![false; pictures];
    // The last of each stretch of the same length.
    (1..=count).for_each(|i| held_out[by_class[i * pictures / count - 1]] = true);
    held_out
}

#[cfg(test)]
mod tests {
    use super::Split::{Neither, Test, Train};
    use super::*;

    fn of(names: &str, archive: bool) -> Layout {
        layout(&names.split_whitespace().map(PathBuf::from).collect::<Vec<_>>(), archive)
    }

    #[track_caller]
    fn is_laid(names: &str, splits: Option<&[Split]>, classes: &str, labels: &[u32], notes: &[&str]) {
        let found = of(names, false);
        assert_eq!(found.splits.as_deref(), splits, "{names}");
        assert_eq!((found.classes.join(" "), &found.labels[..]), (classes.to_owned(), labels), "{names}");
        assert_eq!(found.notes.len(), notes.len(), "{:?}", found.notes);
        for (note, part) in found.notes.iter().zip(notes) {
            assert!(note.contains(part), "`{part}` is not in: {note}");
        }
    }

    #[test]
    fn the_first_folder_names_the_class_and_deeper_ones_belong_to_it() {
        is_laid("a/1.png a/x/y/2.png b/z/3.png", None, "a b", &[0, 0, 1], &[]);
        is_laid("a.png b.png", None, "", &[], &[]);
        is_laid("a/1.png a/2.png", None, "a", &[0, 0], &[]);
        is_laid("a/x/1.png a/y/2.png", None, "a", &[0, 0], &[]);
        is_laid("1.png a/2.png b/3.png", None, "", &[], &["2 pictures are in class folders and 1 beside them"]);
    }

    #[test]
    fn splits_have_many_names_in_any_case() {
        for train in ["train", "Training", "TRAIN"] {
            for test in ["test", "Testing", "eval", "valid", "Validation", "VAL", "dev"] {
                let names = format!("{test}/b/1.png {train}/a/2.png {train}/b/deep/3.png");
                is_laid(&names, Some(&[Test, Train, Train]), "a b", &[1, 0, 1], &[]);
            }
        }
        is_laid("train/1.png test/2.png", Some(&[Train, Test]), "", &[], &[]);
        // A validation set is held out only where there is no test set.
        is_laid(
            "Train/a/1.png Test/a/2.png val/a/3.png extra/4.png 5.png",
            Some(&[Train, Test, Neither, Neither, Neither]),
            "a",
            &[0; 5],
            &["left out: 1 pictures in extra, because Test and Train", "in no folder", "left out: 1 pictures in val"],
        );
        // One level down.
        is_laid("set/train/a/1.png set/val/a/2.png", Some(&[Train, Test]), "a", &[0, 0], &[]);
        is_laid("set/train/a/1.png set/train/b/2.png other/c/3.png", None, "other set", &[1, 1, 0], &[]);
    }

    #[test]
    fn a_folder_named_train_can_be_a_class_or_all_there_is() {
        is_laid("bus/1.png train/2.png", None, "bus train", &[0, 1], &[]);
        is_laid("train/a/1.png train/b/2.png", None, "a b", &[0, 1], &["train has no test folder beside it"]);
        is_laid("test/1.png dev/2.png", None, "dev test", &[1, 0], &[]);
    }

    #[test]
    fn an_archive_has_a_folder_around_all() {
        let found = of("photos/cats/1.png photos/dogs/2.png", true);
        assert_eq!((found.classes.join(" "), found.labels), ("cats dogs".into(), vec![0, 1]));
        assert!(of("photos/1.png photos/2.png", true).classes.is_empty());
        assert_eq!(of("a/b/train/x/1.png a/b/test/x/2.png", true).splits, Some(vec![Train, Test]));
        assert_eq!(of("photos/cats/1.png photos/dogs/2.png", false).classes, ["photos"]);
    }

    #[test]
    fn held_out_pictures_are_a_share_of_the_whole_set_spread_over_the_classes() {
        // 270 pictures in 90 classes of three: 27 held out, of 27 classes.
        let labels: Vec<u32> = (0..270).map(|i| i % 90).collect();
        let held_out = hold_out(&labels, 270, 27);
        let classes: BTreeSet<u32> = (0..270).filter(|i| held_out[*i]).map(|i| labels[i]).collect();
        assert_eq!((held_out.iter().filter(|h| **h).count(), classes.len()), (27, 27));
        let chosen = |n, count| (0..n).filter(|i| hold_out(&[], n, count)[*i]).collect::<Vec<_>>();
        assert_eq!(chosen(20, 2), [9, 19]);
        assert_eq!((chosen(2, 1), chosen(2, 2), chosen(1, 1), chosen(5, 0)), (vec![1], vec![1], vec![], vec![]));
    }
}
