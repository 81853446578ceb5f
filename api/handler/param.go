package handler

import (
	"reflect"

	"github.com/danielgtaylor/huma/v2"
)

// optional is a parameter that may be absent, which differs from its zero value. Its methods are those
// that huma asks for (huma.ParamWrapper, huma.ParamReactor, huma.SchemaProvider).
type optional[T any] struct {
	Value T
	Set   bool
}

// Schema is that of the value.
func (o optional[T]) Schema(r huma.Registry) *huma.Schema {
	return huma.SchemaFromType(r, reflect.TypeOf(o.Value))
}

// Receiver is where the value is decoded to.
func (o *optional[T]) Receiver() reflect.Value { return reflect.ValueOf(o).Elem().Field(0) }

// OnParamSet is told whether the parameter was there.
func (o *optional[T]) OnParamSet(set bool, _ any) { o.Set = set }
