// franz-go, which uses the newest versions it finds; see ../README.md.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const client = "franz"

var codecs = []struct {
	name  string
	codec kgo.CompressionCodec
}{
	{"none", kgo.NoCompression()},
	{"gzip", kgo.GzipCompression()},
	{"snappy", kgo.SnappyCompression()},
	{"lz4", kgo.Lz4Compression()},
	{"zstd", kgo.ZstdCompression()},
}

func main() {
	step, bootstrap, topic, which := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	count, err := strconv.Atoi(os.Args[5])
	must(err)
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	var answer any
	switch step {
	case "produce":
		answer = produce(ctx, bootstrap, topic, which, count)
	case "consume":
		answer = consume(ctx, bootstrap, topic, which, count)
	default:
		answer = resume(ctx, bootstrap, topic, which, count)
	}
	must(json.NewEncoder(os.Stdout).Encode(answer))
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func seeds(bootstrap string) kgo.Opt {
	return kgo.SeedBrokers(strings.Split(bootstrap, ",")...)
}

func create(ctx context.Context, bootstrap, topic string) {
	admin, err := kgo.NewClient(seeds(bootstrap))
	must(err)
	defer admin.Close()
	request := kmsg.NewCreateTopicsRequest()
	one := kmsg.NewCreateTopicsRequestTopic()
	one.Topic, one.NumPartitions, one.ReplicationFactor = topic, 4, 1
	request.Topics = append(request.Topics, one)
	response, err := request.RequestWith(ctx, admin)
	must(err)
	err = kerr.ErrorForCode(response.Topics[0].ErrorCode)
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		panic(err)
	}
}

func produce(ctx context.Context, bootstrap, topic, run string, count int) any {
	create(ctx, bootstrap, topic)
	var names []string
	for _, c := range codecs {
		names = append(names, c.name)
		producer, err := kgo.NewClient(seeds(bootstrap), kgo.DefaultProduceTopic(topic),
			kgo.ProducerBatchCompression(c.codec), kgo.ProducerLinger(20*time.Millisecond))
		must(err)
		var records []*kgo.Record
		for i := range count {
			records = append(records, &kgo.Record{
				Key:   []byte(fmt.Sprintf("k%d", i)),
				Value: []byte(fmt.Sprintf("%s/%s/%s/%d/%s", client, run, c.name, i, strings.Repeat("tributary ", 8))),
				Headers: []kgo.RecordHeader{
					{Key: "h", Value: []byte("1")}, {Key: "h", Value: []byte("2")}},
			})
		}
		must(producer.ProduceSync(ctx, records...).FirstErr())
		producer.Close()
	}
	return map[string]any{"codecs": names}
}

// member is one consumer; its partitions are counted by the callbacks, which run one at a time.
type member struct {
	*kgo.Client
	mu         sync.Mutex
	partitions int
}

func join(bootstrap, topic, group string) *member {
	m := &member{}
	count := func(by int) func(context.Context, *kgo.Client, map[string][]int32) {
		return func(ctx context.Context, c *kgo.Client, moved map[string][]int32) {
			if by < 0 {
				must(c.CommitUncommittedOffsets(ctx))
			}
			m.mu.Lock()
			m.partitions += by * len(moved[topic])
			m.mu.Unlock()
		}
	}
	c, err := kgo.NewClient(seeds(bootstrap), kgo.ConsumeTopics(topic), kgo.ConsumerGroup(group),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(), kgo.HeartbeatInterval(500*time.Millisecond),
		kgo.OnPartitionsAssigned(count(1)), kgo.OnPartitionsRevoked(count(-1)))
	must(err)
	m.Client = c
	return m
}

func (m *member) share() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.partitions
}

func (m *member) poll(ctx context.Context) []string {
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	var found []string
	fetches := m.PollFetches(short)
	fetches.EachRecord(func(r *kgo.Record) {
		if len(r.Headers) != 2 || string(r.Headers[0].Value)+string(r.Headers[1].Value) != "12" {
			panic(fmt.Sprint("headers: ", r.Headers))
		}
		found = append(found, strings.Join(strings.Split(string(r.Value), "/")[:4], "/"))
	})
	m.AllowRebalance()
	return found
}

func consume(ctx context.Context, bootstrap, topic, group string, expected int) any {
	seen := map[string]bool{}
	one := join(bootstrap, topic, group)
	var two *member
	var shares [2]int
	for len(seen) < expected || shares[1] == 0 || shares[0]+shares[1] != 4 {
		must(ctx.Err())
		for _, m := range []*member{one, two} {
			if m == nil {
				continue
			}
			for _, value := range m.poll(ctx) {
				seen[value] = true
			}
		}
		shares[0] = one.share()
		if two == nil && shares[0] > 0 {
			two = join(bootstrap, topic, group)
		} else if two != nil {
			shares[1] = two.share()
		}
	}
	must(one.CommitUncommittedOffsets(ctx))
	must(two.CommitUncommittedOffsets(ctx))
	one.Close()
	two.Close()
	var values []string
	for value := range seen {
		values = append(values, value)
	}
	return map[string]any{"values": values, "shares": shares}
}

func resume(ctx context.Context, bootstrap, topic, group string, expected int) any {
	var values []string
	m := join(bootstrap, topic, group)
	for len(values) < expected {
		must(ctx.Err())
		values = append(values, m.poll(ctx)...)
	}
	for until := time.Now().Add(time.Second); time.Now().Before(until); {
		values = append(values, m.poll(ctx)...)
	}
	must(m.CommitUncommittedOffsets(ctx))
	m.Close()
	return map[string]any{"values": values}
}
