//! Who may log in from where, and how: rules in the syntax of `pg_hba.conf`. The first that fits decides.
//!
//! Pure. What PostgreSQL knows and the router does not is refused when the rules are read, never skipped: a rule that
//! is left out would let the next one decide.

use std::net::IpAddr;

/// How a client proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// It does not.
    Trust,
    /// It is not let in.
    Reject,
    /// By SCRAM-SHA-256.
    Scram,
    /// By its MD5 hash if that is kept of its password, else by SCRAM-SHA-256.
    Md5,
    /// By a certificate whose common name is the user's.
    Cert,
}

const METHODS: [(&str, Method); 5] = [
    ("trust", Method::Trust),
    ("reject", Method::Reject),
    ("scram-sha-256", Method::Scram),
    ("md5", Method::Md5),
    ("cert", Method::Cert),
];

/// Which connections a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Any,
    InsideTls,
    InTheClear,
}

/// Names in a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    All,
    /// The database has the user's name.
    SameUser,
    This(String),
}

/// An address, and how many of its bits count.
type Net = (IpAddr, u8);

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    kind: Kind,
    databases: Vec<Name>,
    users: Vec<Name>,
    /// None: from anywhere.
    from: Option<Net>,
    method: Method,
    /// What else a certificate must be, beside the method.
    certificate: Certificate,
}

/// What a rule asks of a client's certificate besides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Certificate {
    /// Nothing.
    #[default]
    Unasked,
    /// There must be one (`clientcert=verify-ca`).
    Any,
    /// It must have the user's name (`clientcert=verify-full`).
    OfUser,
}

/// A client that wants to log in.
#[derive(Clone, Copy, Debug)]
pub struct Visitor<'a> {
    /// From where.
    pub from: IpAddr,
    /// Inside TLS.
    pub secure: bool,
    /// As whom.
    pub user: &'a str,
    /// Where to.
    pub database: &'a str,
}

/// Rules, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// One for all.
    pub fn one(method: Method) -> Self {
        let all = || vec![Name::All];
        let certificate = Certificate::default();
        Self(vec![Rule { kind: Kind::Any, databases: all(), users: all(), from: None, method, certificate }])
    }

    /// Reads rules, a line each; empty lines and comments are none. Mistakes come with the numbers of their lines.
    ///
    /// # Errors
    /// All mistakes.
    pub fn parse<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Self, Vec<(usize, String)>> {
        let (mut rules, mut wrong) = (Vec::new(), Vec::new());
        for (number, line) in (1..).zip(lines) {
            match words(line)
                .and_then(|words| if words.is_empty() { Ok(None) } else { rule(&words).map(Some) })
            {
                Ok(found) => rules.extend(found),
                Err(why) => wrong.push((number, why)),
            }
        }
        if wrong.is_empty() { Ok(Self(rules)) } else { Err(wrong) }
    }

    /// What the first rule that fits says; none fits: nobody is let in.
    pub fn decide(&self, visitor: &Visitor<'_>) -> Option<(Method, Certificate)> {
        let rule = self.0.iter().find(|rule| rule.fits(visitor))?;
        Some((rule.method, rule.certificate))
    }

    /// Whether any rule needs certificates of clients.
    pub fn ask_certificates(&self) -> bool {
        self.0.iter().any(|rule| rule.method == Method::Cert || rule.certificate != Certificate::Unasked)
    }

    /// Whether any rule needs passwords.
    pub fn ask_passwords(&self) -> bool {
        self.0.iter().any(|rule| matches!(rule.method, Method::Scram | Method::Md5))
    }

    /// Whether any rule lets somebody in without proof.
    pub fn trust_anybody(&self) -> bool {
        self.0.iter().any(|rule| rule.method == Method::Trust)
    }
}

impl Rule {
    fn fits(&self, visitor: &Visitor<'_>) -> bool {
        let kind = match self.kind {
            Kind::Any => true,
            Kind::InsideTls => visitor.secure,
            Kind::InTheClear => !visitor.secure,
        };
        let named = |names: &[Name], name: &str| {
            names.iter().any(|known| match known {
                Name::All => true,
                Name::SameUser => visitor.user == visitor.database,
                Name::This(known) => known == name,
            })
        };
        let near = self.from.is_none_or(|(net, bits)| is_within(visitor.from, net, bits));
        kind && near && named(&self.databases, visitor.database) && named(&self.users, visitor.user)
    }
}

/// Whether an address is one of a net.
fn is_within(address: IpAddr, net: IpAddr, bits: u8) -> bool {
    let same = |a: u128, b: u128, width: u32| {
        let shift = width.saturating_sub(u32::from(bits));
        shift >= width || a >> shift == b >> shift
    };
    match (address.to_canonical(), net) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

/// A word, and whether it, or each of its parts between commas, was in quotes.
type Word = Vec<(String, bool)>;

/// The words of a line. A word has parts between commas; quotes take away the meaning of what is in them.
fn words(line: &str) -> Result<Vec<Word>, String> {
    let mut words: Vec<Word> = Vec::new();
    let mut goes_on = false;
    let mut chars = line.chars().peekable();
    while let Some(next) = chars.peek().copied() {
        match next {
            '#' => break,
            c if c.is_whitespace() => {
                chars.next();
            }
            ',' => {
                chars.next();
                goes_on = !words.is_empty();
            }
            _ => {
                let quoted = next == '"';
                let mut text = String::new();
                if quoted {
                    chars.next();
                    let mut closed = false;
                    for c in chars.by_ref() {
                        if c == '"' {
                            closed = true;
                            break;
                        }
                        text.push(c);
                    }
                    if !closed {
                        return Err("has a quote that is not closed".to_owned());
                    }
                } else {
                    while let Some(c) = chars.next_if(|c| !c.is_whitespace() && !matches!(c, ',' | '#' | '"'))
                    {
                        text.push(c);
                    }
                }
                match words.last_mut().filter(|_| goes_on) {
                    Some(word) => word.push((text, quoted)),
                    None => words.push(vec![(text, quoted)]),
                }
                goes_on = false;
            }
        }
    }
    Ok(words)
}

fn single(word: &Word) -> Result<&str, String> {
    match word.as_slice() {
        [(text, _)] => Ok(text),
        _ => Err("has a comma where one word is expected".to_owned()),
    }
}

fn rule(words: &[Word]) -> Result<Rule, String> {
    let [kind, databases, users, rest @ ..] = words else {
        return Err("is too short: TYPE DATABASE USER ADDRESS METHOD".to_owned());
    };
    let kind = match single(kind)? {
        "host" | "hostnogssenc" => Kind::Any,
        "hostssl" => Kind::InsideTls,
        "hostnossl" => Kind::InTheClear,
        other => return Err(format!("begins with {other}; the router knows host, hostssl and hostnossl")),
    };
    let databases = names(databases, true)?;
    let users = names(users, false)?;
    let (from, rest) = address(rest)?;
    let [method, options @ ..] = rest else { return Err("has no method".to_owned()) };
    let word = single(method)?;
    let method = METHODS.iter().find(|(name, _)| *name == word).map(|(_, method)| *method);
    let method = method.ok_or_else(|| {
        let known: Vec<&str> = METHODS.iter().map(|(name, _)| *name).collect();
        format!("has the method {word}; the router knows {}", known.join(", "))
    })?;
    if method == Method::Cert && kind != Kind::InsideTls {
        return Err("has the method cert, which needs hostssl".to_owned());
    }
    let mut certificate = Certificate::Unasked;
    for option in options {
        certificate = match single(option)? {
            "clientcert=verify-ca" if kind == Kind::InsideTls => Certificate::Any,
            "clientcert=verify-full" if kind == Kind::InsideTls => Certificate::OfUser,
            other => {
                return Err(format!(
                    "has the option {other}; the router knows clientcert=verify-ca and clientcert=verify-full, of hostssl"
                ));
            }
        };
    }
    Ok(Rule { kind, databases, users, from, method, certificate })
}

/// Databases or users.
fn names(word: &Word, of_databases: bool) -> Result<Vec<Name>, String> {
    let name = |(text, quoted): &(String, bool)| match text.as_str() {
        _ if *quoted => Ok(Some(Name::This(text.clone()))),
        "all" => Ok(Some(Name::All)),
        "sameuser" if of_databases => Ok(Some(Name::SameUser)),
        // Replication connections do not pass the router.
        "replication" if of_databases => Ok(None),
        "samerole" | "samegroup" if of_databases => {
            Err(format!("has {text}: the router does not know who is a member of which role"))
        }
        _ if text.starts_with(['+', '@', '/']) => {
            Err(format!("has {text}: the router knows names, not roles (+), files (@) or patterns (/)"))
        }
        _ => Ok(Some(Name::This(text.clone()))),
    };
    word.iter().filter_map(|part| name(part).transpose()).collect()
}

/// Where clients come from, and what follows.
fn address(words: &[Word]) -> Result<(Option<Net>, &[Word]), String> {
    let [first, rest @ ..] = words else { return Err("has no address".to_owned()) };
    let text = single(first)?;
    if text == "all" {
        return Ok((None, rest));
    }
    let wrong = || format!("has the address {text}; the router knows all, and addresses as 10.0.0.0/8");
    if let Some((net, bits)) = text.split_once('/') {
        let net: IpAddr = net.parse().map_err(|_| wrong())?;
        let most = if net.is_ipv4() { 32 } else { 128 };
        let bits: u8 = bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(wrong)?;
        return Ok((Some((net, bits)), rest));
    }
    let net: IpAddr = text.parse().map_err(|_| wrong())?;
    let [mask, rest @ ..] = rest else { return Err("has no mask after its address".to_owned()) };
    let mask: IpAddr = single(mask)?.parse().map_err(|_| "has no mask after its address".to_owned())?;
    let (ones, all_ones_first) = match mask {
        IpAddr::V4(mask) => (mask.to_bits().leading_ones(), mask.to_bits().count_ones()),
        IpAddr::V6(mask) => (mask.to_bits().leading_ones(), mask.to_bits().count_ones()),
    };
    if ones != all_ones_first || mask.is_ipv4() != net.is_ipv4() {
        return Err("has a mask that is none".to_owned());
    }
    Ok((Some((net, u8::try_from(ones).unwrap_or(128))), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Rules {
        Rules::parse(text.lines()).unwrap()
    }

    fn decide(rules: &Rules, from: &str, secure: bool, user: &str, database: &str) -> Option<Method> {
        let visitor = Visitor { from: from.parse().unwrap(), secure, user, database };
        rules.decide(&visitor).map(|(method, _)| method)
    }

    #[test]
    fn the_first_rule_that_fits_decides_and_none_lets_nobody_in() {
        let rules = rules(
            "# TYPE DATABASE USER ADDRESS METHOD\n\
             hostssl all root 0.0.0.0/0 reject # never\n\
             \n\
             hostssl app,\"all\"  anna, \"b c\" 10.0.0.0/8 cert\n\
             host sameuser all 10.1.0.0 255.255.0.0 md5\n\
             hostnossl all all ::1/128 trust\n\
             host replication all all trust\n\
             host app all fd00::/8 scram-sha-256",
        );
        let cases = [
            ("10.2.3.4", true, "root", "app", Some(Method::Reject)),
            ("10.2.3.4", true, "anna", "app", Some(Method::Cert)),
            ("::ffff:10.2.3.4", true, "b c", "all", Some(Method::Cert)),
            ("10.2.3.4", false, "anna", "app", None),
            ("11.2.3.4", true, "anna", "app", None),
            ("10.1.3.4", false, "anna", "anna", Some(Method::Md5)),
            ("10.1.3.4", false, "anna", "other", None),
            ("::1", false, "eve", "x", Some(Method::Trust)),
            ("::1", true, "eve", "x", None),
            ("fd00::7", true, "eve", "app", Some(Method::Scram)),
            ("10.2.3.4", false, "eve", "replication", None),
        ];
        for (from, secure, user, database, method) in cases {
            assert_eq!(decide(&rules, from, secure, user, database), method, "{from} {user} {database}");
        }
        assert!(rules.ask_certificates() && rules.ask_passwords() && rules.trust_anybody());
        assert_eq!(decide(&Rules::one(Method::Scram), "1.2.3.4", false, "a", "b"), Some(Method::Scram));
        assert_eq!(decide(&Rules(Vec::new()), "1.2.3.4", false, "a", "b"), None);
    }

    #[test]
    fn options_ask_for_certificates_besides() {
        let rules = rules("hostssl all all all scram-sha-256 clientcert=verify-full");
        let visitor = Visitor { from: [1, 1, 1, 1].into(), secure: true, user: "a", database: "b" };
        assert_eq!(rules.decide(&visitor), Some((Method::Scram, Certificate::OfUser)));
    }

    #[test]
    fn what_is_not_known_is_refused_with_its_line_and_never_skipped() {
        let cases = [
            ("local all all trust", "begins with local"),
            ("host all", "is too short"),
            ("host all all 10.0.0.0/8", "has no method"),
            ("host all all 10.0.0.0/33 md5", "has the address 10.0.0.0/33"),
            ("host all all samenet md5", "has the address samenet"),
            ("host all all db.example md5", "has the address db.example"),
            ("host all all 10.0.0.0 255.0.255.0 md5", "has a mask that is none"),
            ("host all all 10.0.0.0 md5", "has no mask"),
            ("host all all all ldap ldapserver=x", "has the method ldap"),
            ("host all all all cert", "needs hostssl"),
            ("hostssl all all all cert map=x", "has the option map=x"),
            ("host all +admins all md5", "has +admins"),
            ("host samerole all all md5", "has samerole"),
            ("host \"all all all md5", "quote that is not closed"),
        ];
        for (line, wanted) in cases {
            let told = Rules::parse(["", line].into_iter()).unwrap_err();
            assert_eq!(told.len(), 1);
            assert!(told[0].0 == 2 && told[0].1.contains(wanted), "{line}: {told:?}");
        }
    }
}
