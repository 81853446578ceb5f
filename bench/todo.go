package main

import "context"

func benchApply(context.Context, *bench) error  { return nil }
func benchPlan(context.Context, *bench) error   { return nil }
func benchScale(context.Context, *bench) error  { return nil }
func benchServer(context.Context, *bench) error { return nil }
