//! The scenes of the demo: what is written where, and what came of it.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::counter;
use super::load::{Load, Noted};
use super::region::{NAMES, Region, World, distance};
use crate::demo::screen::Screen;

/// How long any change may take to be everywhere.
pub const EVERYWHERE_WITHIN: Duration = Duration::from_secs(90);
/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// How long the load goes on before and during the cut.
const WRITE_FOR: Duration = Duration::from_secs(8);
const CUT_FOR: Duration = Duration::from_secs(6);

/// What the regions share, besides the counter. A flag is raised in one region and looked for in the others: since
/// what a region wrote is applied in its order, whoever sees the flag has all that was written before.
pub const TABLES: &str = "CREATE TABLE item (id int PRIMARY KEY, name text NOT NULL, price int NOT NULL); \
     CREATE TABLE flag (region text, number int, PRIMARY KEY (region, number))";
/// Its first rows.
pub const ROWS: &str = "INSERT INTO item SELECT i, 'at first', i FROM generate_series(1, 300) i";

/// Everything that every region must have alike, as one text.
const ALL_ROWS: &str = "SELECT md5(string_agg(row, ' ')) FROM (\
     SELECT * FROM (SELECT 'item ' || t::text AS row FROM item t UNION ALL SELECT 'counted ' || t::text FROM counted t \
     UNION ALL SELECT 'flag ' || t::text FROM flag t) u ORDER BY row COLLATE \"C\") r";

/// The scenes, and what they found.
pub struct Stage<'a> {
    /// Where they play.
    pub world: &'a World,
    /// What is not as promised.
    pub broken: Vec<String>,
    screen: &'a RefCell<Screen>,
    flags: i32,
}

impl<'a> Stage<'a> {
    /// An empty stage.
    pub fn new(world: &'a World, screen: &'a RefCell<Screen>) -> Self {
        Self { world, broken: Vec::new(), screen, flags: 0 }
    }

    fn say(&self, line: &str) {
        self.screen.borrow_mut().tell(&format!("  {line}"));
    }

    /// How long a write takes to be seen elsewhere.
    ///
    /// # Errors
    /// If it is not seen at all.
    pub async fn distances(&mut self) -> anyhow::Result<()> {
        for (from, name) in NAMES.iter().enumerate() {
            let seen = self.raise_flag(from).await?;
            let told = seen.iter().map(|(to, took)| {
                let way = distance(from, *to).as_millis();
                format!("in {} {} ms (the way takes {way} ms)", NAMES[*to], took.as_millis())
            });
            let told = told.collect::<Vec<_>>().join(", ");
            self.say(&format!("written in {name}: seen {told}"));
        }
        Ok(())
    }

    /// The same rows, written everywhere at once.
    ///
    /// # Errors
    /// If a server fails, or the regions do not agree in time.
    pub async fn same_row(&mut self) -> anyhow::Result<()> {
        let plays: [(i32, &str, [&str; 3]); 3] = [
            (
                251,
                "three updates of item 251",
                [
                    "UPDATE item SET price = 101 WHERE id = 251",
                    "UPDATE item SET price = 102 WHERE id = 251",
                    "UPDATE item SET price = 103 WHERE id = 251",
                ],
            ),
            (
                252,
                "item 252 updated in eu and us, deleted in asia",
                [
                    "UPDATE item SET price = 201 WHERE id = 252",
                    "UPDATE item SET price = 202 WHERE id = 252",
                    "DELETE FROM item WHERE id = 252",
                ],
            ),
            (
                1001,
                "item 1001 inserted in each",
                [
                    "INSERT INTO item VALUES (1001, 'from eu', 301)",
                    "INSERT INTO item VALUES (1001, 'from us', 302)",
                    "INSERT INTO item VALUES (1001, 'from asia', 303)",
                ],
            ),
        ];
        for (id, what, statements) in plays {
            self.say(&format!("{what}, at the same moment"));
            let written = self.world.regions.iter().zip(statements);
            let written = written.map(|(region, statement)| region.client.batch_execute(statement));
            futures_util::future::try_join_all(written).await?;
            for region in 0..NAMES.len() {
                self.raise_flag(region).await?;
            }
            for region in &self.world.regions {
                for line in conflicts(region, id).await? {
                    self.say(&format!("  {}: {line}", region.name));
                }
            }
            let query = format!("SELECT coalesce((SELECT t::text FROM item t WHERE id = {id}), 'no row')");
            let rows = self.everywhere(&query).await?;
            let same = rows.iter().all(|row| *row == rows[0]);
            self.promise(same, || format!("item {id} differs: {}", rows.join(" | ")));
            self.say(&format!("  now {} in every region", rows[0]));
        }
        Ok(())
    }

    /// All write, and all is well.
    ///
    /// # Errors
    /// If a server fails.
    pub async fn busy(&mut self, load: &Load) -> anyhow::Result<()> {
        let before = load.acknowledged();
        tokio::time::sleep(WRITE_FOR).await;
        let noted = load.noted();
        for (region, noted) in noted.iter().enumerate() {
            let nearest =
                (0..NAMES.len()).filter(|to| *to != region).map(|to| distance(region, to) * 2).min();
            self.say(&format!(
                "{}: {} transactions in {} s; half of them took at most {:.1} ms, 99 of 100 {:.1} ms; \
                 asking the nearest other region would take {} ms",
                NAMES[region],
                noted.acknowledged - before[region],
                WRITE_FOR.as_secs(),
                noted.took(50).as_secs_f64() * 1e3,
                noted.took(99).as_secs_f64() * 1e3,
                nearest.unwrap_or_default().as_millis()
            ));
        }
        Ok(())
    }

    /// A region is cut off from both others; everybody goes on; then it is not any more.
    ///
    /// # Errors
    /// If a server fails, or the regions do not agree in time.
    pub async fn cut(&mut self, load: &Load) -> anyhow::Result<()> {
        let parted = NAMES.len() - 1;
        let conflicts_before = self.conflicts().await?;
        let before = load.acknowledged();
        self.world.cut(parted, true);
        tokio::time::sleep(CUT_FOR).await;
        let after = load.acknowledged();
        let written = before.iter().zip(&after).zip(NAMES);
        let written = written.map(|((before, after), name)| format!("{name} {}", after - before));
        self.say(&format!("all went on writing: {} transactions", written.collect::<Vec<_>>().join(", ")));
        for (nth, name) in NAMES.iter().enumerate() {
            self.promise(after[nth] > before[nth], || {
                format!("{name} did not write while {} was cut off", NAMES[parted])
            });
        }
        let standing = self.world.standing(0).await?;
        if let Some(node) = standing.iter().find(|node| node.name == NAMES[parted]) {
            let behind = node.behind_seconds.unwrap_or_default();
            self.say(&format!(
                "{} says of {}: {}, {behind:.1} s behind{}",
                NAMES[0],
                node.name,
                node.link,
                node.message.as_ref().map_or_else(String::new, |why| format!(" ({why})"))
            ));
        }
        self.world.cut(parted, false);
        let healed = Instant::now();
        for region in 0..NAMES.len() {
            self.raise_flag(region).await?;
        }
        let conflicts = self.conflicts().await? - conflicts_before;
        self.say(&format!(
            "healed; {:.1} s later every region had what the others had written meanwhile; {conflicts} conflicts met and decided",
            healed.elapsed().as_secs_f64()
        ));
        self.world.wait_until_linked(EVERYWHERE_WITHIN).await
    }

    /// The end: all that was written is everywhere, the rows are the same, and the counter is right.
    ///
    /// # Errors
    /// If a server fails, or the regions do not agree in time.
    pub async fn compare(&mut self, noted: &[Noted]) -> anyhow::Result<()> {
        let begun = Instant::now();
        for region in 0..NAMES.len() {
            self.raise_flag(region).await?;
        }
        self.say(&format!("the last write was everywhere after {:.2} s", begun.elapsed().as_secs_f64()));
        let rows = self.everywhere(ALL_ROWS).await?;
        let same = rows.iter().all(|row| *row == rows[0]);
        self.promise(same, || format!("the rows differ: {}", rows.join(", ")));
        let count = self.everywhere("SELECT count(*)::text FROM item").await?;
        self.say(&format!("{} rows in each region's table, the same to the last byte", count[0]));

        let shown = counter::shown(self.world).await?;
        let acknowledged: u64 = noted.iter().map(|noted| noted.acknowledged).sum();
        let right = shown.iter().all(|units| units.unsigned_abs() == acknowledged);
        self.promise(right, || format!("{acknowledged} units were counted, and the counter shows {shown:?}"));
        let parts = noted.iter().zip(NAMES).map(|(noted, name)| format!("{} in {name}", noted.acknowledged));
        let parts = parts.collect::<Vec<_>>().join(", ");
        self.say(&format!("the counter shows {} everywhere; acknowledged: {parts}", shown[0]));
        self.say(&self.kinds().await?);
        Ok(())
    }

    /// Writes a mark in a region and waits until each of the others has it; gives how long each took.
    async fn raise_flag(&mut self, from: usize) -> anyhow::Result<Vec<(usize, Duration)>> {
        self.flags += 1;
        let number = self.flags;
        let insert = "INSERT INTO flag VALUES ($1, $2)";
        self.world.regions[from].client.execute(insert, &[&NAMES[from], &number]).await?;
        let begun = Instant::now();
        let world = self.world;
        let others =
            (0..NAMES.len()).filter(|to| *to != from).map(|to| see_flag(world, from, to, number, begun));
        futures_util::future::try_join_all(others).await
    }

    /// A query's text in each region.
    async fn everywhere(&self, query: &str) -> anyhow::Result<Vec<String>> {
        let mut texts = Vec::new();
        for region in &self.world.regions {
            texts.push(region.text(query).await.with_context(|| format!("in {}", region.name))?);
        }
        Ok(texts)
    }

    /// How many conflicts all regions have met.
    async fn conflicts(&self) -> anyhow::Result<u64> {
        let counts = self.everywhere("SELECT count(*)::text FROM antiphon.conflicts").await?;
        counts.iter().map(|count| Ok(count.parse::<u64>()?)).sum()
    }

    /// How many of each kind, in one sentence.
    async fn kinds(&self) -> anyhow::Result<String> {
        let query = "SELECT kind, count(*) FROM antiphon.conflicts GROUP BY kind";
        let mut kinds = std::collections::BTreeMap::<String, i64>::new();
        for region in &self.world.regions {
            for row in region.client.query(query, &[]).await? {
                *kinds.entry(row.get(0)).or_default() += row.get::<_, i64>(1);
            }
        }
        let mut told = String::from("conflicts met and decided, in all regions:");
        for (kind, count) in kinds {
            // Writing to a String cannot fail.
            let _ = write!(told, " {kind} {count},");
        }
        told.truncate(told.trim_end_matches(',').len());
        Ok(told)
    }

    fn promise(&mut self, kept: bool, otherwise: impl FnOnce() -> String) {
        if !kept {
            self.broken.push(otherwise());
        }
    }
}

/// The conflicts that a region met over an item, one sentence each.
async fn conflicts(region: &Region, id: i32) -> anyhow::Result<Vec<String>> {
    let query = "SELECT c.kind, c.resolution, coalesce(ln.name, 'nobody'), rn.name, \
        coalesce(abs(extract(epoch FROM c.remote_at - c.local_at)) * 1000, 0)::float8 \
        FROM antiphon.conflicts c LEFT JOIN antiphon.nodes ln ON ln.id = c.local_node \
        JOIN antiphon.nodes rn ON rn.id = c.remote_node \
        WHERE c.rel = 'item'::regclass AND c.key->>'id' = $1 ORDER BY c.id";
    let rows = region.client.query(query, &[&id.to_string()]).await?;
    let sentence = |row: &tokio_postgres::Row| {
        let (kind, resolution): (String, String) = (row.get(0), row.get(1));
        let (local, remote): (String, String) = (row.get(2), row.get(3));
        let (winner, loser) = if resolution == "apply_remote" { (remote, local) } else { (local, remote) };
        let later: f64 = row.get(4);
        let met = match kind.as_str() {
            "insert_exists" => "both inserted it",
            "update_origin_differs" => "both updated it",
            "update_deleted" => "one updated what the other deleted",
            "delete_origin_differs" => "one deleted what the other updated",
            _ => "it was not there",
        };
        format!("{met} ({kind}): {winner}'s stands, {later:.1} ms later than {loser}'s")
    };
    Ok(rows.iter().map(sentence).collect())
}

/// Waits until a region has a mark of another one; gives how long that took.
async fn see_flag(
    world: &World,
    from: usize,
    to: usize,
    number: i32,
    raised: Instant,
) -> anyhow::Result<(usize, Duration)> {
    let query = "SELECT FROM flag WHERE region = $1 AND number = $2";
    while world.regions[to].client.query_opt(query, &[&NAMES[from], &number]).await?.is_none() {
        if raised.elapsed() > EVERYWHERE_WITHIN {
            let standing = world.standing(to).await?;
            let link = standing.iter().find(|node| node.name == NAMES[from]);
            let link = link.map_or_else(String::new, |node| {
                format!(
                    "; the link is {}, {:.1} s behind",
                    node.link,
                    node.behind_seconds.unwrap_or_default()
                )
            });
            bail!(
                "what {} wrote is not in {} after {} s{link}",
                NAMES[from],
                NAMES[to],
                EVERYWHERE_WITHIN.as_secs()
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok((to, raised.elapsed()))
}
