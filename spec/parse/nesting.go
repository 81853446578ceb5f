package parse

import (
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// maxDepth bounds recursion in the parser and the evaluator of the HCL library, which have no bound of their
// own: they recurse for each bracket, and for each operator of an expression.
const maxDepth = 500

// level is what is open at some place: a bracket, a quote or a template, and the operators in it so far.
type level struct {
	lines     bool // a newline ends an expression here
	operators int
}

// deep reports whether the configuration in src may make the library recurse deeper than maxDepth.
func deep(src []byte) bool {
	tokens, _ := hclsyntax.LexConfig(src, "", hcl.InitialPos)
	return deepTokens(tokens)
}

// deepTemplate is deep for a template.
func deepTemplate(src []byte) bool {
	tokens, _ := hclsyntax.LexTemplate(src, "", hcl.InitialPos)
	return deepTokens(tokens)
}

func deepTokens(tokens hclsyntax.Tokens) bool {
	stack := []level{{lines: true}}
	depth := 0
	for i, t := range tokens {
		top := &stack[len(stack)-1]
		switch t.Type {
		case hclsyntax.TokenOBrack, hclsyntax.TokenOBrace, hclsyntax.TokenOParen, hclsyntax.TokenOQuote, hclsyntax.TokenOHeredoc, hclsyntax.TokenTemplateInterp:
			top.operators++
			stack = append(stack, level{lines: t.Type == hclsyntax.TokenOBrace})
			depth += 2
		case hclsyntax.TokenCBrack, hclsyntax.TokenCBrace, hclsyntax.TokenCParen, hclsyntax.TokenCQuote, hclsyntax.TokenCHeredoc, hclsyntax.TokenTemplateSeqEnd:
			if len(stack) > 1 {
				depth -= top.operators + 1
				stack = stack[:len(stack)-1]
			}
		case hclsyntax.TokenTemplateControl:
			n := control(tokens[i+1:])
			n = max(n, -top.operators)
			top.operators, depth = top.operators+n, depth+n
			stack = append(stack, level{})
			depth++
		case hclsyntax.TokenStringLit, hclsyntax.TokenQuotedLit, hclsyntax.TokenIdent, hclsyntax.TokenNumberLit, hclsyntax.TokenEqual, hclsyntax.TokenComment:
		case hclsyntax.TokenComma, hclsyntax.TokenNewline:
			if t.Type == hclsyntax.TokenComma || top.lines {
				depth -= top.operators
				top.operators = 0
			}
		default:
			top.operators++
			depth++
		}
		if depth > maxDepth {
			return true
		}
	}
	return false
}

// control is how a template's directive changes the nesting: %{ if } and %{ for } open, their ends close.
func control(rest hclsyntax.Tokens) int {
	for _, t := range rest {
		switch {
		case t.Type == hclsyntax.TokenTemplateSeqEnd:
			return 1
		case t.Type != hclsyntax.TokenIdent:
			continue
		}
		switch string(t.Bytes) {
		case "else":
			return 0
		case "endif", "endfor":
			return -1
		}
		return 1
	}
	return 1
}
