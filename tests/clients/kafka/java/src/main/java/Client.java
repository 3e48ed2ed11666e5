import java.time.Duration;
import java.util.*;
import java.util.concurrent.*;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.*;

/** The Java client; see ../../../../README.md. */
public class Client {
  static final String NAME = "java";
  static final List<String> CODECS = List.of("none", "gzip", "snappy", "lz4", "zstd");
  static final Duration PATIENCE = Duration.ofSeconds(90);

  public static void main(String[] arguments) throws Exception {
    String bootstrap = arguments[1], topic = arguments[2], which = arguments[3];
    int count = Integer.parseInt(arguments[4]);
    switch (arguments[0]) {
      case "produce" -> produce(bootstrap, topic, which, count);
      case "consume" -> consume(bootstrap, topic, which, count);
      default -> resume(bootstrap, topic, which, count);
    }
  }

  static void produce(String bootstrap, String topic, String run, int count) throws Exception {
    try (Admin admin = Admin.create(Map.<String, Object>of("bootstrap.servers", bootstrap))) {
      admin.createTopics(List.of(new NewTopic(topic, 4, (short) 1))).all().get();
    } catch (ExecutionException error) {
      if (!(error.getCause() instanceof TopicExistsException)) throw error;
    }
    for (String codec : CODECS) {
      Map<String, Object> settings = Map.of(
          "bootstrap.servers", bootstrap, "compression.type", codec, "enable.idempotence", true,
          "acks", "all", "linger.ms", 20);
      try (var producer =
          new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer())) {
        List<Future<RecordMetadata>> sent = new ArrayList<>();
        for (int i = 0; i < count; i++) {
          String value = NAME + "/" + run + "/" + codec + "/" + i + "/" + "tributary ".repeat(8);
          var record = new ProducerRecord<>(topic, "k" + i, value);
          record.headers().add("h", "1".getBytes()).add("h", "2".getBytes());
          sent.add(producer.send(record));
        }
        for (var future : sent) future.get();
      }
    }
    System.out.println("{\"codecs\": " + json(CODECS) + "}");
  }

  /** One consumer, used by one thread. */
  static class Member implements ConsumerRebalanceListener, AutoCloseable {
    final KafkaConsumer<String, String> consumer;
    volatile int partitions = 0;

    Member(String bootstrap, String topic, String group) {
      Map<String, Object> settings = Map.of(
          "bootstrap.servers", bootstrap, "group.id", group, "auto.offset.reset", "earliest",
          "enable.auto.commit", false, "heartbeat.interval.ms", 500);
      consumer = new KafkaConsumer<>(settings, new StringDeserializer(), new StringDeserializer());
      consumer.subscribe(List.of(topic), this);
    }

    public void onPartitionsAssigned(Collection<TopicPartition> assigned) {
      partitions = consumer.assignment().size();
    }

    public void onPartitionsRevoked(Collection<TopicPartition> revoked) {
      consumer.commitSync();
      partitions = consumer.assignment().size() - revoked.size();
    }

    List<String> poll() {
      List<String> found = new ArrayList<>();
      for (var record : consumer.poll(Duration.ofMillis(200))) {
        List<String> headers = new ArrayList<>();
        for (Header header : record.headers().headers("h")) headers.add(new String(header.value()));
        if (!headers.equals(List.of("1", "2"))) throw new IllegalStateException("headers " + headers);
        String[] parts = record.value().split("/");
        found.add(String.join("/", Arrays.copyOf(parts, 4)));
      }
      return found;
    }

    public void close() {
      consumer.close();
    }
  }

  static void consume(String bootstrap, String topic, String group, int expected) throws Exception {
    Set<String> seen = ConcurrentHashMap.newKeySet();
    int[] shares = new int[2];
    var firstHas = new CountDownLatch(1);
    var allRead = new CyclicBarrier(2);
    var pool = Executors.newFixedThreadPool(2);
    List<Future<Void>> members = new ArrayList<>();
    for (int index = 0; index < 2; index++) {
      int me = index;
      members.add(pool.submit((Callable<Void>) () -> {
        if (me == 1) firstHas.await();
        try (var member = new Member(bootstrap, topic, group)) {
          long deadline = System.nanoTime() + PATIENCE.toNanos();
          while (seen.size() < expected || shares[0] == 0 || shares[1] == 0) {
            if (System.nanoTime() > deadline) {
              throw new TimeoutException(seen.size() + " of " + expected + " " + Arrays.toString(shares));
            }
            seen.addAll(member.poll());
            if (member.partitions > 0) {
              firstHas.countDown();
              if (member.partitions < 4) shares[me] = member.partitions;
            }
          }
          member.consumer.commitSync();
          allRead.await(90, TimeUnit.SECONDS);
        }
        return null;
      }));
    }
    for (var member : members) member.get();
    pool.shutdown();
    System.out.println(
        "{\"values\": " + json(seen) + ", \"shares\": " + Arrays.toString(shares) + "}");
  }

  static void resume(String bootstrap, String topic, String group, int expected) throws Exception {
    List<String> seen = new ArrayList<>();
    try (var member = new Member(bootstrap, topic, group)) {
      long deadline = System.nanoTime() + PATIENCE.toNanos();
      while (seen.size() < expected) {
        if (System.nanoTime() > deadline) throw new TimeoutException(seen.size() + " of " + expected);
        seen.addAll(member.poll());
      }
      long until = System.nanoTime() + Duration.ofSeconds(1).toNanos();
      while (System.nanoTime() < until) seen.addAll(member.poll());
      member.consumer.commitSync();
    }
    System.out.println("{\"values\": " + json(seen) + "}");
  }

  static String json(Collection<String> texts) {
    var parts = new StringJoiner(", ", "[", "]");
    for (String text : texts) parts.add('"' + text + '"');
    return parts.toString();
  }
}
