//! Every SQL statement of the program, prepared against the migrated schema: a column that is gone, a wrong type or a
//! misspelt word is found even where no other test runs the statement.
//!
//! Statements are the string literals in `src/` that begin like one, also inside of `format!`, whose placeholders are
//! constants. Statements that are composed at run time (lists with filters) are run by the tests of these lists.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use sqlx::{Executor as _, PgPool, SqlSafeStr as _};
use syn::{
    Expr, ExprLit, ItemConst, Lit, LitStr, Macro, Token,
    parse::{Parse, ParseStream},
    visit::{self, Visit},
};
use workflow_api::db::migrations::MIGRATOR;

/// How many statements are composed from parts that are not constants. Each is run by the tests of its list or resource.
const COMPOSED: usize = 24;

/// A statement as it stands in the source.
struct Statement {
    file: String,
    /// With `{NAME}` for constants if it is the format of a `format!`.
    text: String,
    is_format: bool,
}

/// The string literals of one file.
#[derive(Default)]
struct Literals {
    file: String,
    statements: Vec<Statement>,
    constants: HashMap<String, Statement>,
}

/// What is between the brackets of `format!`: the format, and whatever follows.
struct Format(LitStr);

impl Parse for Format {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let format = input.parse()?;
        if !input.is_empty() {
            input.parse::<Token![,]>()?;
            input.parse::<proc_macro2::TokenStream>()?;
        }
        Ok(Self(format))
    }
}

impl Literals {
    fn statement(&self, text: String, is_format: bool) -> Statement {
        Statement { file: self.file.clone(), text, is_format }
    }

    fn add(&mut self, text: String, is_format: bool) {
        let begins_like =
            |word: &str| text.trim_start().strip_prefix(word).is_some_and(|rest| rest.starts_with([' ', '\n']));
        if ["SELECT", "INSERT", "UPDATE", "DELETE", "WITH"].into_iter().any(begins_like) {
            self.statements.push(self.statement(text, is_format));
        }
    }
}

impl Visit<'_> for Literals {
    fn visit_item_const(&mut self, constant: &ItemConst) {
        if let Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) = &*constant.expr {
            let statement = self.statement(text.value(), false);
            self.constants.insert(constant.ident.to_string(), statement);
        } else if let Expr::Lit(ExprLit { lit: Lit::Int(number), .. }) = &*constant.expr {
            let statement = self.statement(number.base10_digits().to_owned(), false);
            self.constants.insert(constant.ident.to_string(), statement);
        } else {
            visit::visit_item_const(self, constant);
        }
    }

    fn visit_item_mod(&mut self, module: &syn::ItemMod) {
        let is_test = module.attrs.iter().any(|attribute| {
            attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Ident>().is_ok_and(|condition| condition == "test")
        });
        if !is_test {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_lit_str(&mut self, text: &LitStr) {
        self.add(text.value(), false);
    }

    fn visit_macro(&mut self, call: &Macro) {
        if call.path.is_ident("format")
            && let Ok(Format(format)) = call.parse_body()
        {
            self.add(format.value(), true);
        }
    }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let inside = folders.iter().flat_map(|folder| rust_files(folder));
    files.into_iter().filter(|file| file.extension().is_some_and(|end| end == "rs")).chain(inside).collect()
}

fn all_literals(source: &Path) -> Vec<Literals> {
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a file");
        let file = path.strip_prefix(source).expect("below it").display().to_string();
        let mut literals = Literals { file, ..Literals::default() };
        literals.visit_file(&syn::parse_file(&text).expect("Rust"));
        literals
    };
    rust_files(source).into_iter().map(read).collect()
}

/// The statement with its constants in place, or `None` if a placeholder is no constant. Adds the names of constants to
/// `used`.
fn filled(
    statement: &Statement,
    constants: &HashMap<(&str, &str), &Statement>,
    used: &mut HashSet<String>,
) -> Option<String> {
    if !statement.is_format {
        return Some(statement.text.clone());
    }
    let mut whole = String::new();
    let mut rest = statement.text.as_str();
    while let Some(at) = rest.find(['{', '}']) {
        whole.push_str(&rest[..at]);
        let bracket = &rest[at..=at];
        if rest[at + 1..].starts_with(bracket) {
            whole.push_str(bracket);
            rest = &rest[at + 2..];
            continue;
        }
        let end = at + rest[at..].find('}')?;
        let name = &rest[at + 1..end];
        let own = constants.get(&(statement.file.as_str(), name));
        let constant =
            own.or_else(|| constants.iter().find(|((_, other), _)| *other == name).map(|(_, found)| found))?;
        used.insert(name.to_owned());
        whole.push_str(&filled(constant, constants, used)?);
        rest = &rest[end + 1..];
    }
    whole.push_str(rest);
    Some(whole)
}

/// The statements of a program.
pub struct Statements {
    /// File and text of each statement, with its constants in place.
    pub whole: Vec<(String, String)>,
    /// Statements that are composed at run time.
    composed: Vec<String>,
}

impl Statements {
    /// The statements in this folder.
    pub fn of(source: &Path) -> Self {
        let literals = all_literals(source);
        let constants: HashMap<(&str, &str), &Statement> = literals
            .iter()
            .flat_map(|of| of.constants.iter().map(|(name, value)| ((of.file.as_str(), name.as_str()), value)))
            .collect();
        let mut used = HashSet::new();
        let mut all = Self { whole: Vec::new(), composed: Vec::new() };
        for statement in literals.iter().flat_map(|of| &of.statements) {
            match filled(statement, &constants, &mut used) {
                Some(sql) => all.whole.push((statement.file.clone(), sql)),
                None => all.composed.push(format!("{}: {}", statement.file, statement.text)),
            }
        }
        all
    }
}

/// Prepares statements, and fails with those that do not fit the schema.
pub async fn prepare_all(pool: &PgPool, statements: &[(String, String)]) {
    let mut wrong = Vec::new();
    for (file, sql) in statements {
        if let Err(error) = pool.prepare(sqlx::AssertSqlSafe(sql.as_str()).into_sql_str()).await {
            wrong.push(format!("{file}: {error}\n{sql}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), statements.len(), wrong.join("\n\n"));
    assert!(statements.len() > 100, "{}", statements.len());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn every_statement_fits_the_schema(pool: PgPool) {
    let statements = Statements::of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    prepare_all(&pool, &statements.whole).await;
    assert_eq!(statements.composed.len(), COMPOSED, "{:#?}", statements.composed);
}
