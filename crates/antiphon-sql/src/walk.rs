//! The parser's tree, walked for all names that a query depends on.
//!
//! The walk knows the constructs of queries; one that it does not know refuses the text, so that a new kind of
//! node can never be passed over. The depth of the tree is bounded where it was decoded.

use pg_query::protobuf::{
    AExpr, AExprKind, CopyStmt, FuncCall, JoinExpr, JsonAggConstructor, JsonBehavior, JsonFuncExpr,
    JsonOutput, JsonTable, JsonTableColumn, JsonValueExpr, Node, RangeVar, SelectStmt, SubLink, SubLinkType,
    TypeName, WindowDef, WithClause, node::Node as Is,
};

use crate::names::{Kind, Name, Names};
use crate::why::Why;

/// The names on which these statements depend together, if all are queries.
pub(crate) fn names(statements: &[&Is]) -> Result<Box<[Name]>, Why> {
    let mut walk = Walk::default();
    for statement in statements {
        match statement {
            Is::SelectStmt(select) => walk.select(select)?,
            Is::CopyStmt(copy) => walk.copy(copy)?,
            Is::InsertStmt(_) | Is::UpdateStmt(_) | Is::DeleteStmt(_) | Is::MergeStmt(_) => {
                return Err(Why::Writes);
            }
            Is::TransactionStmt(_) => return Err(Why::TransactionControl),
            Is::VariableSetStmt(set) if crate::statement::own(&set.name).is_some() => {
                return Err(Why::OwnSetting);
            }
            Is::VariableShowStmt(show) if crate::statement::own(&show.name).is_some() => {
                return Err(Why::OwnSetting);
            }
            _ => return Err(Why::Utility),
        }
    }
    Ok(walk.names.into_boxed())
}

#[derive(Default)]
struct Walk<'a> {
    names: Names,
    /// The WITH queries in sight, innermost last: their names are no tables.
    with: Vec<&'a str>,
}

type Walked = Result<(), Why>;

impl<'a> Walk<'a> {
    /// Only what goes to the client: files and programs are of the server.
    fn copy(&mut self, copy: &'a CopyStmt) -> Walked {
        if copy.is_from {
            return Err(Why::Writes);
        }
        if copy.is_program || !copy.filename.is_empty() {
            return Err(Why::Utility);
        }
        if let Some(relation) = &copy.relation {
            self.relation(relation)?;
        }
        match copy.query.as_deref().and_then(|query| query.node.as_ref()) {
            Some(Is::SelectStmt(select)) => self.select(select)?,
            Some(_) => return Err(Why::Writes),
            None => {}
        }
        self.maybe(copy.where_clause.as_deref())
    }

    fn select(&mut self, select: &'a SelectStmt) -> Walked {
        if select.into_clause.is_some() {
            return Err(Why::Into);
        }
        if !select.locking_clause.is_empty() {
            return Err(Why::Locks);
        }
        let outside = self.with.len();
        if let Some(with) = &select.with_clause {
            self.with(with)?;
        }
        for side in [&select.larg, &select.rarg].into_iter().flatten() {
            self.select(side)?;
        }
        for nodes in [
            &select.distinct_clause,
            &select.target_list,
            &select.from_clause,
            &select.group_clause,
            &select.window_clause,
            &select.values_lists,
            &select.sort_clause,
        ] {
            self.all(nodes)?;
        }
        for node in [&select.where_clause, &select.having_clause, &select.limit_offset, &select.limit_count] {
            self.maybe(node.as_deref())?;
        }
        self.with.truncate(outside);
        Ok(())
    }

    fn with(&mut self, with: &'a WithClause) -> Walked {
        let mut queries = Vec::new();
        for node in &with.ctes {
            let Some(Is::CommonTableExpr(query)) = &node.node else { return Err(Why::Unclear) };
            queries.push(query);
        }
        if with.recursive {
            self.with.extend(queries.iter().map(|query| query.ctename.as_str()));
        }
        for query in queries {
            match query.ctequery.as_deref().and_then(|node| node.node.as_ref()) {
                Some(Is::SelectStmt(select)) => self.select(select)?,
                Some(Is::InsertStmt(_) | Is::UpdateStmt(_) | Is::DeleteStmt(_) | Is::MergeStmt(_)) => {
                    return Err(Why::WritesInWith);
                }
                Some(_) | None => return Err(Why::Unclear),
            }
            if let Some(cycle) = &query.cycle_clause {
                self.operator("=");
                self.maybe(cycle.cycle_mark_value.as_deref())?;
                self.maybe(cycle.cycle_mark_default.as_deref())?;
            }
            // Without RECURSIVE a name means this query only after it: before, it is a table's.
            if !with.recursive {
                self.with.push(&query.ctename);
            }
        }
        Ok(())
    }

    fn all(&mut self, nodes: &'a [Node]) -> Walked {
        nodes.iter().try_for_each(|node| self.node(node))
    }

    fn maybe(&mut self, node: Option<&'a Node>) -> Walked {
        node.map_or(Ok(()), |node| self.node(node))
    }

    fn node(&mut self, node: &'a Node) -> Walked {
        // An empty place in a list, as in DISTINCT without ON.
        let Some(node) = &node.node else { return Ok(()) };
        match node {
            Is::AConst(_)
            | Is::ParamRef(_)
            | Is::AStar(_)
            | Is::SqlvalueFunction(_)
            | Is::SetToDefault(_)
            | Is::Integer(_)
            | Is::Float(_)
            | Is::Boolean(_)
            | Is::String(_)
            | Is::BitString(_) => Ok(()),
            Is::List(list) => self.all(&list.items),
            Is::SelectStmt(select) => self.select(select),
            Is::RangeVar(relation) => self.relation(relation),
            Is::RangeSubselect(_)
            | Is::RangeFunction(_)
            | Is::RangeTableFunc(_)
            | Is::RangeTableFuncCol(_)
            | Is::RangeTableSample(_)
            | Is::JsonTable(_)
            | Is::JsonTableColumn(_)
            | Is::JoinExpr(_)
            | Is::ColumnDef(_) => self.source(node),
            Is::JsonObjectConstructor(_)
            | Is::JsonArrayConstructor(_)
            | Is::JsonArrayQueryConstructor(_)
            | Is::JsonObjectAgg(_)
            | Is::JsonArrayAgg(_)
            | Is::JsonFuncExpr(_)
            | Is::JsonKeyValue(_)
            | Is::JsonValueExpr(_)
            | Is::JsonArgument(_)
            | Is::JsonIsPredicate(_)
            | Is::JsonParseExpr(_)
            | Is::JsonScalarExpr(_)
            | Is::JsonSerializeExpr(_) => self.json(node),
            _ => self.expression(node),
        }
    }

    /// What stands in FROM.
    fn source(&mut self, node: &'a Is) -> Walked {
        match node {
            Is::RangeSubselect(sub) => self.maybe(sub.subquery.as_deref()),
            Is::RangeFunction(functions) => {
                self.all(&functions.functions)?;
                self.all(&functions.coldeflist)
            }
            Is::ColumnDef(column) => self.maybe_type(column.type_name.as_ref()),
            Is::RangeTableFunc(table) => {
                self.maybe(table.docexpr.as_deref())?;
                self.maybe(table.rowexpr.as_deref())?;
                self.all(&table.namespaces)?;
                self.all(&table.columns)
            }
            Is::RangeTableFuncCol(column) => {
                self.maybe_type(column.type_name.as_ref())?;
                self.maybe(column.colexpr.as_deref())?;
                self.maybe(column.coldefexpr.as_deref())
            }
            Is::RangeTableSample(sample) => {
                self.maybe(sample.relation.as_deref())?;
                self.name(Kind::Function, &sample.method)?;
                self.all(&sample.args)?;
                self.maybe(sample.repeatable.as_deref())
            }
            Is::JoinExpr(join) => self.join(join),
            Is::JsonTable(table) => self.json_table(table),
            Is::JsonTableColumn(column) => self.json_column(column),
            _ => Err(Why::Unclear),
        }
    }

    fn join(&mut self, join: &'a JoinExpr) -> Walked {
        if join.is_natural || !join.using_clause.is_empty() {
            self.operator("=");
        }
        self.maybe(join.larg.as_deref())?;
        self.maybe(join.rarg.as_deref())?;
        self.maybe(join.quals.as_deref())
    }

    fn expression(&mut self, node: &'a Is) -> Walked {
        match node {
            Is::ResTarget(target) => {
                self.indirection(&target.indirection)?;
                self.maybe(target.val.as_deref())
            }
            // The first is a table's name or the column's; what follows may be a call in disguise.
            Is::ColumnRef(column) => self.indirection(column.fields.get(1..).unwrap_or_default()),
            Is::AIndirection(field) => {
                self.maybe(field.arg.as_deref())?;
                self.indirection(&field.indirection)
            }
            Is::AIndices(indices) => {
                self.maybe(indices.lidx.as_deref())?;
                self.maybe(indices.uidx.as_deref())
            }
            Is::AExpr(expression) => self.operation(expression),
            Is::FuncCall(call) => self.call(call),
            Is::NamedArgExpr(argument) => self.maybe(argument.arg.as_deref()),
            Is::TypeCast(cast) => {
                self.maybe_type(cast.type_name.as_ref())?;
                self.maybe(cast.arg.as_deref())
            }
            Is::BoolExpr(expression) => self.all(&expression.args),
            Is::SubLink(link) => self.sub_link(link),
            Is::AArrayExpr(array) => self.all(&array.elements),
            Is::RowExpr(row) => self.all(&row.args),
            Is::CoalesceExpr(expression) => self.all(&expression.args),
            // GREATEST and LEAST compare by the type's own order.
            Is::MinMaxExpr(expression) => self.all(&expression.args),
            Is::NullTest(test) => self.maybe(test.arg.as_deref()),
            Is::BooleanTest(test) => self.maybe(test.arg.as_deref()),
            Is::CollateClause(collate) => self.maybe(collate.arg.as_deref()),
            Is::CaseExpr(case) => {
                if case.arg.is_some() {
                    self.operator("=");
                }
                self.maybe(case.arg.as_deref())?;
                self.all(&case.args)?;
                self.maybe(case.defresult.as_deref())
            }
            Is::CaseWhen(when) => {
                self.maybe(when.expr.as_deref())?;
                self.maybe(when.result.as_deref())
            }
            Is::SortBy(sort) => {
                if !sort.use_op.is_empty() {
                    self.name(Kind::Operator, &sort.use_op)?;
                }
                self.maybe(sort.node.as_deref())
            }
            Is::WindowDef(window) => self.window(window),
            Is::GroupingSet(set) => self.all(&set.content),
            Is::GroupingFunc(function) => self.all(&function.args),
            Is::XmlExpr(xml) => {
                self.all(&xml.named_args)?;
                self.all(&xml.args)
            }
            Is::XmlSerialize(xml) => {
                self.maybe_type(xml.type_name.as_ref())?;
                self.maybe(xml.expr.as_deref())
            }
            _ => Err(Why::Unclear),
        }
    }

    fn operation(&mut self, expression: &'a AExpr) -> Walked {
        match expression.kind() {
            AExprKind::AexprBetween
            | AExprKind::AexprNotBetween
            | AExprKind::AexprBetweenSym
            | AExprKind::AexprNotBetweenSym => {
                for operator in ["<", "<=", ">", ">="] {
                    self.operator(operator);
                }
            }
            AExprKind::Undefined => return Err(Why::Unclear),
            AExprKind::AexprOp
            | AExprKind::AexprOpAny
            | AExprKind::AexprOpAll
            | AExprKind::AexprDistinct
            | AExprKind::AexprNotDistinct
            | AExprKind::AexprNullif
            | AExprKind::AexprIn
            | AExprKind::AexprLike
            | AExprKind::AexprIlike
            | AExprKind::AexprSimilar => self.name(Kind::Operator, &expression.name)?,
        }
        self.maybe(expression.lexpr.as_deref())?;
        self.maybe(expression.rexpr.as_deref())
    }

    fn sub_link(&mut self, link: &'a SubLink) -> Walked {
        match link.sub_link_type() {
            // IN says no operator and means equality.
            SubLinkType::AnySublink | SubLinkType::AllSublink | SubLinkType::RowcompareSublink => {
                if link.oper_name.is_empty() {
                    self.operator("=");
                } else {
                    self.name(Kind::Operator, &link.oper_name)?;
                }
            }
            SubLinkType::ExistsSublink | SubLinkType::ExprSublink | SubLinkType::ArraySublink => {}
            SubLinkType::MultiexprSublink | SubLinkType::CteSublink | SubLinkType::Undefined => {
                return Err(Why::Unclear);
            }
        }
        self.maybe(link.testexpr.as_deref())?;
        self.maybe(link.subselect.as_deref())
    }

    fn call(&mut self, call: &'a FuncCall) -> Walked {
        self.name(Kind::Function, &call.funcname)?;
        self.all(&call.args)?;
        self.all(&call.agg_order)?;
        self.maybe(call.agg_filter.as_deref())?;
        call.over.as_deref().map_or(Ok(()), |window| self.window(window))
    }

    fn window(&mut self, window: &'a WindowDef) -> Walked {
        self.all(&window.partition_clause)?;
        self.all(&window.order_clause)?;
        self.maybe(window.start_offset.as_deref())?;
        self.maybe(window.end_offset.as_deref())
    }

    /// What follows a point or stands in brackets.
    fn indirection(&mut self, steps: &'a [Node]) -> Walked {
        for step in steps {
            match &step.node {
                Some(Is::String(field)) => self.names.add(Kind::Field, None, &field.sval),
                Some(_) | None => self.node(step)?,
            }
        }
        Ok(())
    }

    fn maybe_type(&mut self, name: Option<&'a TypeName>) -> Walked {
        let Some(name) = name else { return Ok(()) };
        if name.pct_type {
            return Err(Why::Unclear);
        }
        self.all(&name.typmods)?;
        self.name(Kind::Type, &name.names)
    }

    fn relation(&mut self, relation: &'a RangeVar) -> Walked {
        let schema = Some(relation.schemaname.as_str()).filter(|schema| !schema.is_empty());
        if schema.is_none() && self.with.contains(&relation.relname.as_str()) {
            return Ok(());
        }
        self.add(Kind::Relation, schema, &relation.relname)
    }

    /// A name of one, two or three parts, of which the first of three is the database.
    fn name(&mut self, kind: Kind, parts: &'a [Node]) -> Walked {
        let mut words = Vec::with_capacity(2);
        for part in parts {
            let Some(Is::String(word)) = &part.node else { return Err(Why::Unclear) };
            words.push(word.sval.as_str());
        }
        match words.as_slice() {
            [name] => self.add(kind, None, name),
            [schema, name] | [_, schema, name] => self.add(kind, Some(schema), name),
            _ => Err(Why::Unclear),
        }
    }

    fn add(&mut self, kind: Kind, schema: Option<&str>, name: &str) -> Walked {
        if schema.is_some_and(|schema| schema.starts_with("pg_temp") || schema.starts_with("pg_toast_temp")) {
            return Err(Why::Temporary);
        }
        self.names.add(kind, schema, name);
        Ok(())
    }

    fn operator(&mut self, name: &str) {
        self.names.add(Kind::Operator, None, name);
    }
}

/// SQL/JSON: a family of constructs of its own.
impl<'a> Walk<'a> {
    fn json(&mut self, node: &'a Is) -> Walked {
        match node {
            Is::JsonObjectConstructor(object) => {
                self.json_output(object.output.as_ref())?;
                self.all(&object.exprs)
            }
            Is::JsonArrayConstructor(array) => {
                self.json_output(array.output.as_ref())?;
                self.all(&array.exprs)
            }
            Is::JsonArrayQueryConstructor(array) => {
                self.json_output(array.output.as_ref())?;
                self.maybe(array.query.as_deref())
            }
            Is::JsonObjectAgg(aggregate) => {
                self.json_aggregate(aggregate.constructor.as_deref())?;
                let Some(pair) = &aggregate.arg else { return Ok(()) };
                self.maybe(pair.key.as_deref())?;
                self.json_value(pair.value.as_deref())
            }
            Is::JsonArrayAgg(aggregate) => {
                self.json_aggregate(aggregate.constructor.as_deref())?;
                self.json_value(aggregate.arg.as_deref())
            }
            Is::JsonFuncExpr(function) => self.json_function(function),
            Is::JsonKeyValue(pair) => {
                self.maybe(pair.key.as_deref())?;
                self.json_value(pair.value.as_deref())
            }
            Is::JsonValueExpr(value) => self.json_value(Some(value)),
            Is::JsonArgument(argument) => self.json_value(argument.val.as_deref()),
            Is::JsonIsPredicate(predicate) => self.maybe(predicate.expr.as_deref()),
            Is::JsonParseExpr(parse) => {
                self.json_output(parse.output.as_ref())?;
                self.json_value(parse.expr.as_deref())
            }
            Is::JsonScalarExpr(scalar) => {
                self.json_output(scalar.output.as_ref())?;
                self.maybe(scalar.expr.as_deref())
            }
            Is::JsonSerializeExpr(serialize) => {
                self.json_output(serialize.output.as_ref())?;
                self.json_value(serialize.expr.as_deref())
            }
            _ => Err(Why::Unclear),
        }
    }

    fn json_value(&mut self, value: Option<&'a JsonValueExpr>) -> Walked {
        let Some(value) = value else { return Ok(()) };
        self.maybe(value.raw_expr.as_deref())?;
        self.maybe(value.formatted_expr.as_deref())
    }

    fn json_output(&mut self, output: Option<&'a JsonOutput>) -> Walked {
        self.maybe_type(output.and_then(|output| output.type_name.as_ref()))
    }

    fn json_behavior(&mut self, behavior: Option<&'a JsonBehavior>) -> Walked {
        self.maybe(behavior.and_then(|behavior| behavior.expr.as_deref()))
    }

    fn json_aggregate(&mut self, constructor: Option<&'a JsonAggConstructor>) -> Walked {
        let Some(constructor) = constructor else { return Ok(()) };
        self.json_output(constructor.output.as_ref())?;
        self.maybe(constructor.agg_filter.as_deref())?;
        self.all(&constructor.agg_order)?;
        constructor.over.as_deref().map_or(Ok(()), |window| self.window(window))
    }

    fn json_function(&mut self, function: &'a JsonFuncExpr) -> Walked {
        self.json_value(function.context_item.as_deref())?;
        self.maybe(function.pathspec.as_deref())?;
        self.all(&function.passing)?;
        self.json_output(function.output.as_ref())?;
        self.json_behavior(function.on_empty.as_deref())?;
        self.json_behavior(function.on_error.as_deref())
    }

    fn json_table(&mut self, table: &'a JsonTable) -> Walked {
        self.json_value(table.context_item.as_deref())?;
        self.maybe(table.pathspec.as_deref().and_then(|path| path.string.as_deref()))?;
        self.all(&table.passing)?;
        self.all(&table.columns)?;
        self.json_behavior(table.on_error.as_deref())
    }

    fn json_column(&mut self, column: &'a JsonTableColumn) -> Walked {
        self.maybe_type(column.type_name.as_ref())?;
        self.maybe(column.pathspec.as_deref().and_then(|path| path.string.as_deref()))?;
        self.all(&column.columns)?;
        self.json_behavior(column.on_empty.as_deref())?;
        self.json_behavior(column.on_error.as_deref())
    }
}
