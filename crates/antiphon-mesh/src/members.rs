//! Who takes part, as every node has it written down, and what the mesh's things are called on the servers.

use antiphon_core::mesh::NodeId;
use tokio_postgres::Client;

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its number, never given again.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// How the others reach its database, without a password.
    pub connect: String,
    /// `joining`, `active` or `left`.
    pub state: String,
}

impl Member {
    /// Whether it has not left.
    #[must_use]
    pub fn takes_part(&self) -> bool {
        self.state != "left"
    }
}

/// Reads all nodes that ever took part, by number.
///
/// # Errors
/// If this is no node of a mesh, or the server fails.
pub async fn read(client: &Client) -> Result<Vec<Member>, tokio_postgres::Error> {
    let rows = client.query("SELECT id, name, connect, state FROM antiphon.nodes ORDER BY id", &[]).await?;
    let member = |row: &tokio_postgres::Row| {
        let id: i16 = row.get(0);
        let id = u16::try_from(id).ok().and_then(NodeId::new).expect("the table has a check on it");
        Member { id, name: row.get(1), connect: row.get(2), state: row.get(3) }
    };
    Ok(rows.iter().map(member).collect())
}

/// What things are called. Slots and origins belong to a whole server, which may have databases in several meshes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The mesh.
    pub mesh: String,
    /// Its identity, which no other mesh has.
    pub id: String,
}

/// The longest name of a mesh: with the rest, a slot's name fits into 63 bytes.
pub const MESH_NAME_BYTES_MAX: usize = 40;

/// What the name of a repair's origin ends in.
const REPAIR: &str = "_repair";

impl Names {
    /// The names in this mesh.
    ///
    /// # Errors
    /// If slots cannot be called after it.
    pub fn new(mesh: &str, id: &str) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if (1..=MESH_NAME_BYTES_MAX).contains(&mesh.len()) && mesh.chars().all(allowed) {
            return Ok(Self { mesh: mesh.to_owned(), id: id.to_owned() });
        }
        Err(format!(
            "{mesh:?} cannot be a mesh's name: use 1 to {MESH_NAME_BYTES_MAX} lower-case letters, digits and _"
        ))
    }

    /// The publication that every node has.
    #[must_use]
    pub fn publication(&self) -> String {
        format!("antiphon_{}", self.mesh)
    }

    /// The slot from which a node reads, on each of the others.
    #[must_use]
    pub fn slot(&self, reader: NodeId) -> String {
        format!("antiphon_{}_{reader}", self.mesh)
    }

    /// The replication origin that stands for a node, on each of the others.
    #[must_use]
    pub fn origin(&self, node: NodeId) -> String {
        format!("antiphon_{}_{node}", self.mesh)
    }

    /// The replication origin with which a repair writes what a node had written, on every node, its own included.
    /// The other one belongs to the link and cannot be shared.
    #[must_use]
    pub fn repair_origin(&self, node: NodeId) -> String {
        format!("antiphon_{}_{node}{REPAIR}", self.mesh)
    }

    /// The node that an origin stands for, if it is one of this mesh.
    #[must_use]
    pub fn node_of_origin(&self, origin: &str) -> Option<NodeId> {
        let number = origin.strip_prefix(&format!("antiphon_{}_", self.mesh))?;
        number.strip_suffix(REPAIR).unwrap_or(number).parse().ok().and_then(NodeId::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_read_as_the_node_that_it_was_named_after() {
        let names = Names::new("shop", "").expect("a name");
        let node = NodeId::new(12).expect("not zero");
        assert_eq!(names.node_of_origin(&names.origin(node)), Some(node));
        assert_eq!(names.node_of_origin(&names.repair_origin(node)), Some(node));
        for other in [
            "antiphon_shop_",
            "antiphon_shop_0",
            "antiphon_shop_eu_1",
            "pg_16389",
            "antiphon_shops_1",
            "antiphon_shop__repair",
        ] {
            assert_eq!(names.node_of_origin(other), None, "{other}");
        }
        assert!(Names::new("Shop", "").is_err() && Names::new("", "").is_err());
    }
}
