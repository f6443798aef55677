//! Trees for people: each node one line, its children under it. Depth and number of nodes are bounded: a peer's tree can't be endless here.

/// Deeper nodes are left out.
const DEPTH_MAX: usize = 32;
/// Further nodes are left out.
const NODES_MAX: usize = 10_000;

/// A line with what hangs below it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tree<T> {
    /// This node.
    pub node: T,
    /// Under it.
    pub below: Vec<Tree<T>>,
}

impl<T> Tree<T> {
    /// Every node, from the top, with the branches to draw before it.
    pub fn rows(self) -> Vec<(String, T)> {
        let mut rows = Vec::new();
        walk(self, "", "", 0, &mut rows);
        rows
    }
}

fn walk<T>(tree: Tree<T>, first: &str, rest: &str, depth: usize, rows: &mut Vec<(String, T)>) {
    if depth > DEPTH_MAX || rows.len() >= NODES_MAX {
        return;
    }
    rows.push((first.to_owned(), tree.node));
    let last = tree.below.len().saturating_sub(1);
    for (i, child) in tree.below.into_iter().enumerate() {
        let (corner, under) = if i == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        walk(child, &format!("{rest}{corner}"), &format!("{rest}{under}"), depth + 1, rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_are_drawn() {
        let leaf = |node| Tree { node, below: vec![] };
        let tree = Tree { node: "root", below: vec![Tree { node: "eu", below: vec![leaf("campus"), leaf("partner")] }, leaf("burst")] };
        let lines: Vec<String> = tree.rows().into_iter().map(|(branch, node)| branch + node).collect();
        assert_eq!(vec!["root", "├─ eu", "│  ├─ campus", "│  └─ partner", "└─ burst"], lines);
    }

    #[test]
    fn an_endless_tree_ends() {
        let mut tree = Tree { node: (), below: vec![] };
        for _ in 0..100 {
            tree = Tree { node: (), below: vec![tree] };
        }
        assert_eq!(DEPTH_MAX + 1, tree.rows().len());
    }
}
