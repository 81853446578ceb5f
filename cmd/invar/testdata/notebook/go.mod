module notebook

go 1.24
