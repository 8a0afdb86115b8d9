//! The reachability matrix: every source pings every target, and a table shows the results.

use std::fmt;
use std::net::IpAddr;

use crate::traffic::ping::Answer;

/// A source and target of pings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Short name for the table.
    pub name: String,
    /// The address that others ping.
    pub address: IpAddr,
    /// Whether this is a node instead of a pod.
    pub is_node: bool,
}

/// One row: the results of one source.
#[derive(Clone, Debug)]
pub struct Row {
    /// The source.
    pub source: Endpoint,
    /// The targets of the pings.
    pub targets: Vec<Endpoint>,
    /// The result of each target, in the order of `targets`.
    pub answers: Vec<Answer>,
}

/// The table of all sources. A pair is reachable if every request was answered.
#[derive(Clone, Debug, Default)]
pub struct Matrix {
    rows: Vec<Row>,
}

/// The targets of `source`: all pods including itself, and for pods also all nodes. Traffic between nodes does not depend on netweft.
#[must_use]
pub fn targets(source: &Endpoint, all: &[Endpoint]) -> Vec<Endpoint> {
    all.iter()
        .filter(|target| !(source.is_node && target.is_node))
        .cloned()
        .collect()
}

impl Matrix {
    /// Adds the results of one source.
    ///
    /// # Errors
    /// The answers do not match the targets in number and order.
    pub fn add(&mut self, row: Row) -> anyhow::Result<()> {
        let requested: Vec<IpAddr> = row.targets.iter().map(|target| target.address).collect();
        let answered: Vec<IpAddr> = row.answers.iter().map(|answer| answer.target).collect();
        anyhow::ensure!(
            requested == answered,
            "{} should ping {requested:?} and reports results of {answered:?}",
            row.source.name
        );
        self.rows.push(row);
        Ok(())
    }

    /// The number of pairs of which every request was answered.
    #[must_use]
    pub fn reachable(&self) -> usize {
        self.answers().filter(|answer| is_reachable(answer)).count()
    }

    /// The number of pairs.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.answers().count()
    }

    /// Checks that all pairs are reachable.
    ///
    /// # Errors
    /// A pair is not reachable, or the matrix has no pairs.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.pairs() > 0, "the matrix has no pairs");
        let unreachable = self.pairs() - self.reachable();
        anyhow::ensure!(
            unreachable == 0,
            "{unreachable} of {} pairs are not reachable",
            self.pairs()
        );
        Ok(())
    }

    fn answers(&self) -> impl Iterator<Item = &Answer> {
        self.rows.iter().flat_map(|row| &row.answers)
    }
}

fn is_reachable(answer: &Answer) -> bool {
    answer.sent > 0 && answer.received == answer.sent
}

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: Vec<&Endpoint> = self.rows.iter().map(|row| &row.source).collect();
        let width = columns
            .iter()
            .map(|column| column.name.len())
            .max()
            .unwrap_or(0)
            .max(4);
        write!(f, "{:width$}", "")?;
        for column in &columns {
            write!(f, "  {:>width$}", column.name)?;
        }
        writeln!(f)?;
        for row in &self.rows {
            write!(f, "{:width$}", row.source.name)?;
            for column in &columns {
                let at = row.targets.iter().position(|target| target == *column);
                let answer = at.and_then(|at| row.answers.get(at));
                write!(f, "  {:>width$}", answer.map_or("-".to_owned(), cell))?;
            }
            writeln!(f)?;
        }
        write!(f, "reachable: {}/{} pairs", self.reachable(), self.pairs())
    }
}

fn cell(answer: &Answer) -> String {
    if is_reachable(answer) {
        "ok".to_owned()
    } else {
        format!("{}/{}", answer.received, answer.sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(name: &str, last: u8, is_node: bool) -> Endpoint {
        Endpoint {
            name: name.into(),
            address: [192, 0, 2, last].into(),
            is_node,
        }
    }

    fn matrix(received: u16) -> Matrix {
        let all = [endpoint("pod-a", 1, false), endpoint("node-1", 2, true)];
        let mut matrix = Matrix::default();
        for source in &all {
            let targets = targets(source, &all);
            let answer = |target: &Endpoint| Answer {
                target: target.address,
                sent: 3,
                received,
                gap: 0,
                pause: 0,
                error: None,
            };
            let answers = targets.iter().map(answer).collect();
            matrix
                .add(Row {
                    source: source.clone(),
                    targets,
                    answers,
                })
                .unwrap();
        }
        matrix
    }

    #[test]
    fn matrix_excludes_node_to_node_pings() {
        assert_eq!(matrix(3).pairs(), 3);
        assert!(matrix(3).to_string().ends_with("reachable: 3/3 pairs"));
    }

    #[test]
    fn matrix_with_lost_ping_is_not_reachable() {
        assert!(matrix(3).check().is_ok());
        assert!(
            matrix(2)
                .check()
                .unwrap_err()
                .to_string()
                .contains("3 of 3")
        );
        assert!(matrix(2).to_string().contains("2/3"));
    }

    #[test]
    fn empty_matrix_fails_check() {
        assert!(Matrix::default().check().is_err());
    }

    #[test]
    fn matrix_row_with_wrong_answers_is_refused() {
        let source = endpoint("pod-a", 1, false);
        let row = Row {
            source: source.clone(),
            targets: vec![source],
            answers: vec![],
        };
        assert!(Matrix::default().add(row).is_err());
    }
}
