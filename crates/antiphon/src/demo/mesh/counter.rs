//! A counter that every region counts with: what is known of it is in this file alone.
//!
//! Each region counts in a row of its own, so no two ever write the same one, and the view adds them up. The later of
//! two writes to one row would lose the other's unit.

use super::region::{NAMES, World};

/// What it is made of. The rows come with the copy when the others join.
pub const TABLES: &str = "CREATE TABLE counted (region text PRIMARY KEY, units bigint NOT NULL); \
     CREATE VIEW counter AS SELECT sum(units)::bigint AS units FROM counted";

/// Its beginning.
pub fn begin() -> String {
    let rows: Vec<String> = NAMES.iter().map(|name| format!("('{name}', 0)")).collect();
    format!("INSERT INTO counted VALUES {}", rows.join(", "))
}

/// One unit more, counted in this region.
pub fn count_one(region: &str) -> String {
    format!("UPDATE counted SET units = units + 1 WHERE region = '{region}'")
}

/// What it shows in each region.
///
/// # Errors
/// If a server fails.
pub async fn shown(world: &World) -> anyhow::Result<Vec<i64>> {
    let mut shown = Vec::new();
    for region in &world.regions {
        shown.push(region.client.query_one("SELECT units FROM counter", &[]).await?.get(0));
    }
    Ok(shown)
}
